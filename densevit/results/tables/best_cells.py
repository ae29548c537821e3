"""Marks for the best cell on each benchmark, and for the cells not distinguished from it."""

from __future__ import annotations

import pandas as pd

from densevit.results.tables.format import lower_is_better
from densevit.results.tables.main_table import CellTable, cell_table_text
from densevit.results.tables.table import Mark, TextTable

MOST_CELLS = 400  # with more cells, none is compared with the best or marked


def marked_table(table: CellTable, frame: pd.DataFrame, note: str = "") -> TextTable:
    """Return the table with its best cells marked; `frame` is the one it was made from."""
    few = frame["cell"].nunique() <= MOST_CELLS
    return cell_table_text(table, best_marks(frame, table.metric) if few else {}, note)


def best_marks(frame: pd.DataFrame, metric: str) -> dict[tuple[str, str], Mark]:
    """Map (cell, benchmark) to its mark in the main table (`main_table.cell_table_text`).

    The cell with the best mean on a benchmark is compared with each other cell, paired by seed,
    with Holm's correction over these comparisons (`seeds.differences`). It is `best` if it wins all
    of them at 5 %; otherwise it and all cells not distinguished from it are `tied`. With one common
    seed no cells are distinguished. A cell whose mean is NaN does not compete; if fewer than two
    compete, there are no marks.

    Choosing the best by the same numbers does not make a false `best` more likely, since it has to
    win every comparison. If k cells do not differ, a benchmark gets a `best` in at most 5 % of
    sweeps for k = 2, and in fewer for larger k.
    """
    chosen = frame[frame["metric"] == metric]
    marks: dict[tuple[str, str], Mark] = {}
    for benchmark, rows in chosen.groupby("benchmark", sort=False):
        marks |= {(cell, str(benchmark)): mark for cell, mark in _marks(rows, metric).items()}
    return marks


def _marks(rows: pd.DataFrame, metric: str) -> dict[str, Mark]:
    """Map each cell to its mark on one benchmark."""
    from densevit.results.stats.seeds import differences

    values = rows.groupby("cell", sort=False)["value"]
    means = values.mean()[values.size() == values.count()]
    if len(means) < 2:
        return {}
    best = means.idxmin() if lower_is_better(metric) else means.idxmax()
    others = [cell for cell in means.index if cell != best]
    competing = rows[rows["cell"].isin(means.index)]
    found = differences(competing, dict.fromkeys(others, best), metric)
    behind = found["difference"] > 0 if lower_is_better(metric) else found["difference"] < 0
    beaten = set(found.loc[(found["verdict"] == "different") & behind, "cell"])
    if beaten == set(others):
        return {best: "best"}
    return {cell: "tied" for cell in means.index if cell not in beaten}
