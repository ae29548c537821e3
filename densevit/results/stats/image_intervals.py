"""Bootstrap intervals over seeds and images of a sweep's cells and differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from densevit.results.stats import bootstrap
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError

MOST_FILES = 400  # prediction files: reading more takes too long for a report
MOST_ALONE = 30  # then only so many one-seed comparisons, which have no other interval
CLOSE = 1e-3  # points: predictions that differ more do not belong to the results
Interval = tuple[float, float, float]  # value, low, high
Key = tuple[str, str]  # cell, benchmark


@dataclass(frozen=True)
class ImageIntervals:
    """Intervals by (cell, benchmark): top-1 accuracy of cells, and differences to the baseline."""

    cells: Mapping[Key, Interval]
    differences: Mapping[Key, Interval]


def image_intervals(plan: Plan, means: pd.DataFrame, differences: pd.DataFrame) -> ImageIntervals:
    """Return the intervals over seeds and images of all cells whose predictions were saved.

    `means` is `seeds.summary` of top-1, `differences` is `seeds.differences`. In a sweep with more
    than `MOST_FILES` prediction files only `MOST_ALONE` comparisons of one seed are computed.
    """
    if int(means["n"].sum()) > MOST_FILES:
        alone = differences[differences["n"] == 1].head(MOST_ALONE)
        return ImageIntervals({}, dict(_of_differences(plan, alone)))
    return ImageIntervals(dict(_of_cells(plan, means)), dict(_of_differences(plan, differences)))


def _of_cells(plan: Plan, means: pd.DataFrame) -> Iterator[tuple[Key, Interval]]:
    for row in means.itertuples(index=False):
        files = bootstrap.prediction_files(plan, row.cell, row.benchmark).values()
        try:
            hits = bootstrap.read_hits(list(files)) if len(files) == row.n else None
        except UserError:  # predictions of other images, or a damaged file: no interval
            continue
        if hits is not None:
            found = bootstrap.interval(hits)
            if math.isclose(found[0], row.mean, abs_tol=CLOSE):
                yield (row.cell, row.benchmark), found


def _of_differences(plan: Plan, rows: pd.DataFrame) -> Iterator[tuple[Key, Interval]]:
    for row in rows.itertuples(index=False):
        try:
            pair = bootstrap.paired_hits(plan, row.cell, row.baseline, row.benchmark)
        except UserError:
            continue
        if pair is not None and len(pair[0]) == row.n:
            found = bootstrap.difference(*pair)
            if math.isclose(found[0], row.difference, abs_tol=CLOSE):
                yield (row.cell, row.benchmark), found
