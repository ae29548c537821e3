"""The effect of each level of an axis, and effects whose sign depends on another axis.

A grid has holes, and axes that do not apply everywhere, so the means over all cells with a level
and with the reference would be over different cells. Here a cell is compared only with a cell that
has the same values on all other axes that apply to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from densevit.results.stats.level_grid import (
    LevelGrid,
    complete_differences,
    level_grid,
    matched_pairs,
)
from densevit.results.stats.seeds import LEVEL, holm, paired

MARGINALS = [
    "axis", "level", "reference", "contexts", "n", "difference", "low", "high", "p", "p_holm",
]  # fmt: skip
FLIPS = [
    "axis", "a", "b", "other", "level1", "difference1", "low1", "high1", "level2", "difference2",
    "low2", "high2",
]  # fmt: skip


def marginals(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    axis: str,
    benchmark: str,
) -> pd.DataFrame:
    """Return the effect on top-1 of each level of an axis against its first level (`MARGINALS`).

    `cells` is `cells_frame`. A context is a pair of
    cells that differ in this axis alone, among the axes that apply to both. For example, the one
    cell without a contrastive loss is paired with the cell of each temperature, and each pair
    counts. Each seed's value is the mean over the contexts; contexts are fixed, and the n seeds are
    the replicates of the paired t interval. Holm's correction is over the levels.

    Contexts and seeds form a full rectangle, so that each seed's mean is over the same contexts. If
    runs are missing, seeds or contexts are dropped, whichever keeps more pairs of runs; `contexts`
    and n are what is left. A value that is not finite is not dropped: it makes the level's numbers
    NaN.
    """
    grid = level_grid(frame, cells, benchmark)
    levels = grid.levels[axis]
    if not levels:
        return pd.DataFrame(columns=MARGINALS)
    comparisons = [
        complete_differences(grid, matched_pairs(grid, axis, code, 0))
        for code in range(1, len(levels))
    ]
    found = paired([by_seed for by_seed, _ in comparisons], grid.least)
    found["axis"] = axis
    found["level"] = pd.Series(levels[1:], dtype=object)
    found["reference"] = pd.Series(levels[:1] * len(comparisons), dtype=object)
    found["contexts"] = [contexts for _, contexts in comparisons]
    found["n"] = [len(by_seed) for by_seed, _ in comparisons]
    return found.assign(p_holm=holm(found["p"]))[MARGINALS]


def flips(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    axes: Sequence[str],
    benchmark: str,
) -> pd.DataFrame:
    """Return the effects on top-1 that change sign (`FLIPS`).

    Level a of an axis is clearly better than b at one level of another axis, and clearly worse at
    another; the row holds a minus b at both, the largest of each sign.

    Clearly: p below 0.05 after Holm's correction over all tested effects: those of every two levels
    of each axis at each level of each other axis (as in `marginals`, also for missing runs). The
    intervals are not corrected.
    """
    grid = level_grid(frame, cells, benchmark)
    comparisons, samples = [], []
    for axis in axes:
        for a, b in combinations(range(len(grid.levels[axis])), 2):
            pairs = matched_pairs(grid, axis, a, b)
            for other in axes:
                if other == axis:
                    continue
                where = grid.codes[pairs, grid.place(other)]  # (pairs, 2)
                for level in range(len(grid.levels[other])):
                    comparisons.append((axis, a, b, other, level))
                    samples.append(
                        complete_differences(grid, pairs[(where == level).all(axis=1)])[0]
                    )
    table = pd.DataFrame(comparisons, columns=["axis", "a", "b", "other", "level"])
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


def _side(row: pd.Series, grid: LevelGrid) -> tuple[Any, float, float, float]:
    return grid.levels[row["other"]][row["level"]], row["difference"], row["low"], row["high"]
