"""What the axes of a grid do: the effect of each level, shares of variance, and effects that turn.

A grid has holes, and axes that do not apply everywhere. So a mean over all cells with a level would
compare other cells than those with the reference; here a cell is only ever compared with the cell
that has the same values on all other axes that apply to both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from densevit.errors import UserError, nearest
from densevit.results.stats import LEVEL, holm, paired, rounding

MARGINALS = [
    "axis", "level", "reference", "contexts", "n", "difference", "low", "high", "p", "p_holm",
]  # fmt: skip
SHARES = ["source", "share"]
FLIPS = [
    "axis", "a", "b", "other", "level1", "difference1", "low1", "high1", "level2", "difference2",
    "low2", "high2",
]  # fmt: skip
ABSENT = -1  # the code of an axis that does not apply


class _Grid(NamedTuple):
    """Cells as whole numbers, and their runs.

    levels: by axis, its values in their order, each once, without None. codes: (cells, axes), the
    place in `levels`, or `ABSENT`. values: (cells, seeds). ran: (cells, seeds), whether there is a
    run: its value may be NaN. least: the smallest std of seeds' differences that is believed.
    """

    levels: dict[str, list[Any]]
    codes: NDArray[np.int64]
    values: NDArray[np.float64]
    ran: NDArray[np.bool_]
    least: float

    def place(self, axis: str) -> int:
        return list(self.levels).index(axis)


def marginals(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    axis: str,
    benchmark: str,
    metric: str = "top1",
    reference: Any = None,
) -> pd.DataFrame:
    """The effect of each level of an axis against a reference, over the grid (`MARGINALS`).

    `cells` are `cells_frame`; `reference` is a level, the first one if left out. A context is a
    pair of cells that differ in the axis alone, as far as the other axes apply to both: the one
    cell without a contrastive loss is in a pair with the cell of each temperature, and counts in
    each of them. For each seed the mean over the contexts is taken; contexts are as given, and
    the n seeds are the replicates of the paired t interval. Holm's correction is over the levels.

    Contexts and seeds make a full rectangle, so that each seed's mean is of the same contexts.
    Where runs are missing, seeds or contexts are left out, whichever keeps more pairs of runs;
    `contexts` and n are what is left. A value that is no finite number is not left out: it makes
    the level's numbers NaN.

    Errors: `UserError` if `reference` is not a level of the axis.
    """
    grid = _grid(frame, cells, benchmark, metric)
    levels = grid.levels[axis]
    if not levels:
        return pd.DataFrame(columns=MARGINALS)
    keys = [_key(level) for level in levels]
    base = 0 if reference is None else _find(reference, keys, axis)
    others = [code for code in range(len(levels)) if code != base]
    looks = [_rectangle(grid, _pairs(grid, axis, code, base)) for code in others]
    found = paired([by_seed for by_seed, _ in looks], grid.least)
    found["axis"] = axis
    found["level"] = pd.Series([levels[code] for code in others], dtype=object)
    found["reference"] = pd.Series([levels[base]] * len(others), dtype=object)
    found["contexts"] = [contexts for _, contexts in looks]
    found["n"] = [len(by_seed) for by_seed, _ in looks]
    return found.assign(p_holm=holm(found["p"]))[MARGINALS]


def variance_shares(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    axes: Sequence[str],
    benchmark: str,
    metric: str = "top1",
) -> pd.DataFrame:
    """Which share of the variance between runs goes with each axis (`SHARES`).

    Eta squared of the main effects in a type II analysis of variance, which holes in the grid do
    not mislead as long as no axis follows from the others; each sum of squares over the sum of
    them, so that the shares add to 1. `seed` is what all cells have in common for a seed;
    the rest are interactions and noise. An axis of k levels gets about (k-1)/runs by chance alone.

    Only cells to which all axes with several levels apply are looked at. Empty where a value is no
    finite number, where all are equal, where there are too few runs to leave a rest, and where axes
    cannot be told apart (one follows from the others).
    """
    levels, codes = _coded(cells, axes)
    several = [place for place, axis in enumerate(axes) if len(levels[axis]) > 1]
    whole = (codes[:, several] != ABSENT).all(axis=1)
    rows = _rows(frame, benchmark, metric)
    place = pd.Index(cells["cell"]).get_indexer(rows["cell"].astype(object))
    kept = (place >= 0) & whole[place]
    names = {f"x{n}": axes[n] for n in several} | {"seed": "seed"}
    table = pd.DataFrame({f"x{n}": codes[place[kept], n] for n in several})
    table["seed"] = rows["seed"].to_numpy()[kept]
    table["value"] = rows["value"].to_numpy(dtype=float)[kept]
    names = {name: source for name, source in names.items() if table[name].nunique() > 1}
    if not names or not np.isfinite(table["value"]).all() or np.ptp(table["value"]) == 0:
        return pd.DataFrame(columns=SHARES)
    squares = _squares(table, list(names))
    if squares is None:
        return pd.DataFrame(columns=SHARES)
    shares = squares / squares.sum()
    told = [(source, float(shares[name])) for name, source in names.items()]
    told.append(("interactions and noise", float(shares["Residual"])))
    return pd.DataFrame(told, columns=SHARES)


def flips(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    axes: Sequence[str],
    benchmark: str,
    metric: str = "top1",
) -> pd.DataFrame:
    """Where a conclusion turns (`FLIPS`): a is clearly better than b at one level of another axis,
    and clearly worse at another; a less b at each, the largest of each sign.

    Clearly: p below 0.05 after Holm's correction over all effects that were looked at, which are
    those of each two levels of each axis at each level of each other axis (as in `marginals`,
    missing runs too). The intervals are not corrected.
    """
    grid = _grid(frame, cells, benchmark, metric)
    looks, samples = [], []
    for axis in axes:
        for a, b in combinations(range(len(grid.levels[axis])), 2):
            pairs = _pairs(grid, axis, a, b)
            for other in axes:
                if other == axis:
                    continue
                where = grid.codes[pairs, grid.place(other)]  # (pairs, 2)
                for level in range(len(grid.levels[other])):
                    looks.append((axis, a, b, other, level))
                    samples.append(_rectangle(grid, pairs[(where == level).all(axis=1)])[0])
    table = pd.DataFrame(looks, columns=["axis", "a", "b", "other", "level"])
    table = pd.concat([table, paired(samples, grid.least)], axis=1)
    clear = table[holm(table["p"]) < 1 - LEVEL]
    rows = []
    for (axis, a, b, other), group in clear.groupby(["axis", "a", "b", "other"], sort=False):
        up, down = group[group["difference"] > 0], group[group["difference"] < 0]
        if len(up) and len(down):
            best = up.loc[up["difference"].idxmax()], down.loc[down["difference"].idxmin()]
            names = axis, grid.levels[axis][a], grid.levels[axis][b], other
            rows.append((*names, *_side(best[0], grid), *_side(best[1], grid)))
    return pd.DataFrame(rows, columns=FLIPS)


def _side(row: pd.Series, grid: _Grid) -> tuple[Any, float, float, float]:
    return grid.levels[row["other"]][row["level"]], row["difference"], row["low"], row["high"]


def _squares(table: pd.DataFrame, names: Sequence[str]) -> pd.Series | None:
    """Type II sums of squares by term; None if there is no rest or the terms are not told apart.

    Of main effects alone, a term's is how much worse the fit is without it: b' C^-1 b, where b are
    its coefficients and C its block of (X'X)^-1. From X'X, of thousands of runs a small matrix,
    which statsmodels' `anova_lm` does not do: it gives the same numbers (a test looks).
    """
    columns = [np.ones((len(table), 1))]
    for name in names:
        codes, levels = pd.factorize(table[name])
        columns.append(np.eye(len(levels))[codes][:, 1:])
    ends = np.cumsum([part.shape[1] for part in columns])
    x, y = np.hstack(columns), table["value"].to_numpy() - table["value"].mean()
    gram = x.T @ x
    # The columns are 0 and 1: their products are exact, and so is the rank.
    if np.linalg.matrix_rank(gram, hermitian=True) < len(gram) or len(x) == len(gram):
        return None
    inverse = np.linalg.inv(gram)
    fitted = inverse @ (x.T @ y)
    squares = {}
    for name, first, last in zip(names, ends[:-1], ends[1:], strict=True):
        block, own = inverse[first:last, first:last], fitted[first:last]
        squares[name] = float(own @ np.linalg.solve(block, own))
    rest = y - x @ fitted
    return pd.Series(squares | {"Residual": float(rest @ rest)})


def _grid(frame: pd.DataFrame, cells: pd.DataFrame, benchmark: str, metric: str) -> _Grid:
    axes = [name for name in cells.columns if name not in ("cell", "label")]
    levels, codes = _coded(cells, axes)
    rows = _rows(frame, benchmark, metric).drop_duplicates(["cell", "seed"])
    place = pd.Index(cells["cell"]).get_indexer(rows["cell"].astype(object))
    seeds = sorted(set(rows["seed"]))
    when = pd.Index(seeds).get_indexer(rows["seed"])
    known = place >= 0
    values = np.full((len(cells), len(seeds)), math.nan)
    ran = np.zeros(values.shape, dtype=bool)
    values[place[known], when[known]] = rows["value"].to_numpy(dtype=float)[known]
    ran[place[known], when[known]] = True
    least = float(rounding(metric, rows["n"]).max()) if len(rows) else 0.0
    return _Grid(levels, codes, values, ran, least)


def _rows(frame: pd.DataFrame, benchmark: str, metric: str) -> pd.DataFrame:
    return frame[(frame["benchmark"] == benchmark) & (frame["metric"] == metric)]


def _coded(
    cells: pd.DataFrame, axes: Sequence[str]
) -> tuple[dict[str, list[Any]], NDArray[np.int64]]:
    """`levels` and `codes` of a grid."""
    levels: dict[str, list[Any]] = {}
    codes = np.full((len(cells), len(axes)), ABSENT, dtype=np.int64)
    for place, axis in enumerate(axes):
        places: dict[Hashable, int] = {}
        levels[axis] = []
        for cell, value in enumerate(cells[axis].tolist()):
            if value is None or (isinstance(value, float) and math.isnan(value)):
                continue
            code = places.setdefault(_key(value), len(places))
            if code == len(levels[axis]):
                levels[axis].append(value)
            codes[cell, place] = code
    return levels, codes


def _key(value: Any) -> Hashable:
    """Values of an axis may be lists or tables; and true is not 1."""
    return json.dumps(value, sort_keys=True, default=str)


def _find(reference: Any, keys: Sequence[Hashable], axis: str) -> int:
    if _key(reference) not in keys:
        raise UserError(f"{axis} {reference!r}: no cell has it; {nearest(_key(reference), keys)}")
    return list(keys).index(_key(reference))


def _pairs(grid: _Grid, axis: str, a: int, b: int) -> NDArray[np.int64]:
    """(pairs, 2): cells with a and with b that agree in all other axes applying to both."""
    at = grid.place(axis)
    others = np.delete(grid.codes, at, axis=1)
    sides = [_by_applying(others, np.flatnonzero(grid.codes[:, at] == code)) for code in (a, b)]
    found = [np.empty((0, 2), dtype=np.int64)]
    for mine, here in sides[0].items():
        for yours, there in sides[1].items():
            shared = np.flatnonzero(np.array(mine, dtype=bool) & np.array(yours, dtype=bool))
            places: dict[tuple[int, ...], list[int]] = {}
            for key, cell in zip(map(tuple, others[there][:, shared]), there, strict=True):
                places.setdefault(key, []).append(cell)
            for key, cell in zip(map(tuple, others[here][:, shared]), here, strict=True):
                found += [np.array([[cell, other]]) for other in places.get(key, ())]
    return np.concatenate(found)


def _by_applying(
    others: NDArray[np.int64], cells: NDArray[np.int64]
) -> dict[tuple[bool, ...], NDArray[np.int64]]:
    """Cells by which of the other axes apply to them."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for cell in cells:
        groups.setdefault(tuple((others[cell] != ABSENT).tolist()), []).append(cell)
    return {applying: np.array(group) for applying, group in groups.items()}


def _rectangle(grid: _Grid, pairs: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
    """The mean difference of the pairs for each seed, and how many pairs: of the first k seeds, by
    how many pairs they have, and the pairs that have them all, for the k that keeps the most."""
    a, b = pairs[:, 0], pairs[:, 1]
    there = grid.ran[a] & grid.ran[b]  # (pairs, seeds)
    if not there.any():
        return np.empty(0), 0
    order = np.argsort(-there.sum(axis=0), kind="stable")
    whole = np.logical_and.accumulate(there[:, order], axis=1)
    kept = whole.sum(axis=0) * np.arange(1, len(order) + 1)
    if kept[1:].any():
        kept[0] = 0  # one seed tells nothing of seeds
    count = len(kept) - int(np.argmax(kept[::-1]))  # of equal ones the most seeds
    rows, seeds = np.flatnonzero(whole[:, count - 1]), np.sort(order[:count])
    each = grid.values[a[rows]][:, seeds] - grid.values[b[rows]][:, seeds]
    return each.mean(axis=0), len(rows)
