"""Marks for the best cell on each benchmark, and for the cells not told apart from it."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from densevit.results.tables.format import lower_is_better
from densevit.results.tables.main_table import CellTable, cell_table_text
from densevit.results.tables.table import Mark, TextTable

MOST_CELLS = 100  # with more cells, none is compared with the best or marked


def marked_table(table: CellTable, frame: pd.DataFrame, note: str = "") -> TextTable:
    """Return the table with its best cells marked; `frame` is the one it was made from."""
    marks = best_marks(frame, table.metric)
    repeated = frame.groupby("cell")["seed"].nunique().gt(1).sum()
    if not marks and 2 <= repeated <= MOST_CELLS:
        note = f"{note} No cell is told apart from the best mean of its column.".strip()
    return cell_table_text(table, marks, note)


def best_marks(frame: pd.DataFrame, metric: str = "top1") -> dict[tuple[str, str], Mark]:
    """Map (cell, benchmark) to its mark in the main table (`main_table.cell_table_text`).

    All pairs of cells on all benchmarks are compared as one family, paired by seed
    (`seeds.differences`). On each benchmark the cell with the best mean is `best` if it is better
    than every other one by an established difference. If only some are worse, the best mean and the
    cells not told apart from it are `tied`. If none is, nothing is marked.

    A cell with one seed, or with a value that is not a number, is not compared and has no mark. In
    at most 5 % of sweeps without any difference is anything marked, since every pair is counted.
    """
    rows = frame[frame["metric"] == metric]
    values = rows.groupby(["cell", "benchmark"], sort=False)["value"]
    finite = values.transform("count")  # without NaN
    competing = rows[(finite > 1) & (finite == values.transform("size"))]
    if not 2 <= competing["cell"].nunique() <= MOST_CELLS:
        return {}
    apart = _told_apart(competing, metric)
    marks: dict[tuple[str, str], Mark] = {}
    for benchmark, group in competing.groupby("benchmark", sort=False):
        means = group.groupby("cell", sort=False)["value"].mean()
        best = means.idxmin() if lower_is_better(metric) else means.idxmax()
        level = [cell for cell in means.index if (benchmark, best, cell) not in apart]
        if len(level) < len(means):
            mark: Mark = "best" if level == [best] else "tied"
            marks |= {(cell, str(benchmark)): mark for cell in level}
    return marks


def _told_apart(rows: pd.DataFrame, metric: str) -> set[tuple[str, str, str]]:
    """Return benchmark, better cell and worse cell of each established difference."""
    from densevit.results.stats.seeds import differences

    pairs = combinations(dict.fromkeys(rows["cell"]), 2)
    found = differences(rows, pairs, metric)
    found = found[found["verdict"] == "established"]
    first = (found["difference"] < 0) == lower_is_better(metric)  # the first of the pair is better
    better = found["cell"].where(first, found["baseline"])
    worse = found["baseline"].where(first, found["cell"])
    return set(zip(found["benchmark"], better, worse, strict=True))
