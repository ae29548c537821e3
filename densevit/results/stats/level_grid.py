"""Runs arranged by the levels of an axis, paired by the values of all other axes and the seed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from densevit.results.stats.ranking import image_metric, image_rows
from densevit.results.stats.seeds import rounding

ABSENT = -1  # code of an axis that does not apply


class LevelGrid(NamedTuple):
    """Cells as integer codes, and the values of their runs.

    levels: axis to its distinct values in order, without None. codes: (cells, axes), index into
    `levels`, or `ABSENT`. values: (cells, seeds). ran: (cells, seeds), true for a run, even if its
    value is NaN. least: lower bound for the std of differences between seeds.
    """

    levels: dict[str, list[Any]]
    codes: NDArray[np.int64]
    values: NDArray[np.float64]
    ran: NDArray[np.bool_]
    least: float

    def place(self, axis: str) -> int:
        """Return the column of an axis in `codes`."""
        return list(self.levels).index(axis)


def level_grid(frame: pd.DataFrame, cells: pd.DataFrame, benchmark: str) -> LevelGrid:
    """Arrange the accuracies on a benchmark by the levels of all axes of `cells_frame`."""
    axes = [name for name in cells.columns if name not in ("cell", "label")]
    levels, codes = encode_levels(cells, axes)
    rows = rows_of(frame, benchmark).drop_duplicates(["cell", "seed"])
    place = pd.Index(cells["cell"]).get_indexer(rows["cell"].astype(object))
    seeds = sorted(set(rows["seed"]))
    column = pd.Index(seeds).get_indexer(rows["seed"])
    known = place >= 0
    values = np.full((len(cells), len(seeds)), math.nan)
    ran = np.zeros(values.shape, dtype=bool)
    values[place[known], column[known]] = rows["value"].to_numpy(dtype=float)[known]
    ran[place[known], column[known]] = True
    least = float(rounding(image_metric(rows), rows["n"]).max()) if len(rows) else 0.0
    return LevelGrid(levels, codes, values, ran, least)


def rows_of(frame: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """Return the rows of the main metric on a benchmark."""
    return image_rows(frame[frame["benchmark"] == benchmark])


def encode_levels(
    cells: pd.DataFrame, axes: Sequence[str]
) -> tuple[dict[str, list[Any]], NDArray[np.int64]]:
    """Return `levels` and `codes` of a grid."""
    levels: dict[str, list[Any]] = {}
    codes = np.full((len(cells), len(axes)), ABSENT, dtype=np.int64)
    for place, axis in enumerate(axes):
        places: dict[str, int] = {}
        levels[axis] = []
        for cell, value in enumerate(cells[axis].tolist()):
            if value is None or (isinstance(value, float) and math.isnan(value)):
                continue
            # Values may be lists or mappings, and true differs from 1.
            key = json.dumps(value, sort_keys=True, default=str)
            code = places.setdefault(key, len(places))
            if code == len(levels[axis]):
                levels[axis].append(value)
            codes[cell, place] = code
    return levels, codes


def matched_pairs(grid: LevelGrid, axis: str, a: int, b: int) -> NDArray[np.int64]:
    """Return (pairs, 2): cells with levels a and b that agree on all other axes of both."""
    at = grid.place(axis)
    others = np.delete(grid.codes, at, axis=1)
    sides = [_by_applying(others, np.flatnonzero(grid.codes[:, at] == code)) for code in (a, b)]
    found = [np.empty((0, 2), dtype=np.int64)]
    for applying_a, cells_a in sides[0].items():
        for applying_b, cells_b in sides[1].items():
            shared = np.flatnonzero(np.array(applying_a, bool) & np.array(applying_b, bool))
            by_key: dict[tuple[int, ...], list[int]] = {}
            for key, cell in zip(map(tuple, others[cells_b][:, shared]), cells_b, strict=True):
                by_key.setdefault(key, []).append(cell)
            for key, cell in zip(map(tuple, others[cells_a][:, shared]), cells_a, strict=True):
                found += [np.array([[cell, other]]) for other in by_key.get(key, ())]
    return np.concatenate(found)


def _by_applying(
    others: NDArray[np.int64], cells: NDArray[np.int64]
) -> dict[tuple[bool, ...], NDArray[np.int64]]:
    """Group cells by which of the other axes apply to them."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for cell in cells:
        groups.setdefault(tuple((others[cell] != ABSENT).tolist()), []).append(cell)
    return {applying: np.array(group) for applying, group in groups.items()}


def complete_differences(
    grid: LevelGrid, pairs: NDArray[np.int64]
) -> tuple[NDArray[np.float64], int]:
    """Return the mean difference of the pairs for each seed, and the number of pairs.

    Seeds are sorted by their number of pairs. It uses the first k seeds and the pairs that have all
    of them, for the k that uses the most runs.
    """
    a, b = pairs[:, 0], pairs[:, 1]
    ran = grid.ran[a] & grid.ran[b]  # (pairs, seeds)
    if not ran.any():
        return np.empty(0), 0
    order = np.argsort(-ran.sum(axis=0), kind="stable")
    whole = np.logical_and.accumulate(ran[:, order], axis=1)
    runs = whole.sum(axis=0) * np.arange(1, len(order) + 1)
    if runs[1:].any():
        runs[0] = 0  # one seed shows no variance between seeds
    count = len(runs) - int(np.argmax(runs[::-1]))  # of equal products the most seeds
    rows, seeds = np.flatnonzero(whole[:, count - 1]), np.sort(order[:count])
    each = grid.values[a[rows]][:, seeds] - grid.values[b[rows]][:, seeds]
    return each.mean(axis=0), len(rows)
