"""Intervals over seeds and pictures of a sweep's cells and differences; computed once."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from densevit.errors import UserError
from densevit.results import kept, samples
from densevit.rundir import read_json, write_json
from densevit.sweep.plan import Plan

MOST_FILES = 400  # of answers: reading more takes longer than a report may
MOST_ALONE = 30  # comparisons of one seed then, of which nothing else tells an interval
CLOSE = 1e-3  # points: answers that give another number are not those of the results
KEPT = "pictures.json"
Interval = tuple[float, float, float]  # value, low, high
Key = tuple[str, str]  # cell, benchmark


@dataclass(frozen=True)
class Resampled:
    """By (cell, benchmark): top-1 accuracy of cells, and differences to the baseline."""

    cells: Mapping[Key, Interval] = field(default_factory=dict)
    differences: Mapping[Key, Interval] = field(default_factory=dict)


def resample(plan: Plan, means: pd.DataFrame, differences: pd.DataFrame) -> Resampled:
    """Intervals over seeds and pictures (`samples`), where the answers were kept.

    `means` are `stats.summary` of top-1, `differences` are `stats.differences`. In a sweep with
    more than `MOST_FILES` files of answers only some comparisons of one seed are looked at.
    """
    file = plan.folder / "cache" / KEPT
    memory = _Memory(file)
    if int(means["n"].sum()) > MOST_FILES:
        alone = differences[differences["n"] == 1].head(MOST_ALONE)
        found = Resampled({}, dict(_of_pairs(plan, alone, memory)))
    else:
        pairs = dict(_of_pairs(plan, differences, memory))
        found = Resampled(dict(_of_cells(plan, means, memory)), pairs)
    memory.write()
    return found


def _of_cells(plan: Plan, means: pd.DataFrame, memory: _Memory) -> Iterator[tuple[Key, Interval]]:
    for row in means.itertuples(index=False):
        files = list(samples.answer_files(plan, row.cell, row.benchmark).values())

        def compute(files: list[Path] = files) -> Interval | None:
            hits = samples.read_hits(files)
            return None if hits is None else samples.interval(hits)

        found = memory.get("cell", files, compute) if len(files) == row.n else None
        if found is not None and math.isclose(found[0], row.mean, abs_tol=CLOSE):
            yield (row.cell, row.benchmark), found


def _of_pairs(plan: Plan, rows: pd.DataFrame, memory: _Memory) -> Iterator[tuple[Key, Interval]]:
    for row in rows.itertuples(index=False):
        sides = [samples.answer_files(plan, c, row.benchmark) for c in (row.cell, row.baseline)]
        common = sorted(sides[0].keys() & sides[1].keys())
        files = [side[seed] for side in sides for seed in common]

        def compute(files: list[Path] = files) -> Interval | None:
            hits = samples.read_hits(files)
            if hits is None:
                return None
            return samples.difference(hits[: len(files) // 2], hits[len(files) // 2 :])

        found = memory.get("pair", files, compute) if len(common) == row.n else None
        if found is not None and math.isclose(found[0], row.difference, abs_tol=CLOSE):
            yield (row.cell, row.benchmark), found


class _Memory:
    """What was computed of the same files before; what nobody asks for any more is forgotten."""

    def __init__(self, file: Path) -> None:
        self.file, self.now = file, time.time()
        self.known: dict[str, list[float] | None] = {}
        with suppress(UserError):  # a damaged file: as if there were none
            self.known = read_json(file) or {}
        self.used: dict[str, list[float] | None] = {}

    def get(
        self, kind: str, files: list[Path], compute: Callable[[], Interval | None]
    ) -> Interval | None:
        if not files:
            return None
        paths = [str(path) for path in files]
        seen = kept.stamp(paths)
        key = hashlib.sha256(repr((kind, paths, seen)).encode()).hexdigest()[:24]
        if key in self.known:
            held = self.known[key]
            found = None if held is None else (held[0], held[1], held[2])
        else:
            try:
                found = compute()
            except UserError:  # answers to other pictures, a damaged file: no interval
                found = None
        if kept.settled(seen, self.now):
            self.used[key] = None if found is None else list(found)
        return found

    def write(self) -> None:
        if self.used != self.known:
            with suppress(OSError):  # it is a convenience
                write_json(self.file, self.used)
