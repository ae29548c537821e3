"""Which cell is the best on each benchmark, and which are not told apart from it."""

from __future__ import annotations

import pandas as pd

from densevit.results.sheet import Mark, Sheet
from densevit.results.tables import LOWER_IS_BETTER, CellTable, cell_sheet

MOST_CELLS = 400  # that are compared with the best: of more no mark is made


def marked_sheet(table: CellTable, frame: pd.DataFrame, note: str = "") -> Sheet:
    """The table with its best marked; `frame` is what it was made of."""
    few = frame["cell"].nunique() <= MOST_CELLS
    return cell_sheet(table, best_marks(frame, table.metric) if few else {}, note)


def best_marks(frame: pd.DataFrame, metric: str = "top1") -> dict[tuple[str, str], Mark]:
    """(cell, benchmark) to its mark in the main table (`tables.cell_sheet`).

    The cell with the best mean of a benchmark is compared with each other one, paired by seed, with
    Holm's correction over these comparisons (`stats.differences`). It is `best` if all of them are
    decided at 5 % in its favour; otherwise it and all from which it is not told apart are `tied`.
    With one seed in common nothing is told apart. Cells whose mean is not a number do not compete;
    where fewer than two do, nothing is marked.

    That the best is chosen by the same numbers makes the mark no easier: to be called the best, it
    has to win every comparison. A null effect of k cells is marked in at most 5 % of sweeps for
    k = 2, and in fewer for more.
    """
    chosen = frame[frame["metric"] == metric]
    marks: dict[tuple[str, str], Mark] = {}
    for benchmark, rows in chosen.groupby("benchmark", sort=False):
        marks |= {(cell, str(benchmark)): mark for cell, mark in _marks(rows, metric).items()}
    return marks


def _marks(rows: pd.DataFrame, metric: str) -> dict[str, Mark]:
    """Cell to mark on one benchmark."""
    from densevit.results.stats import differences

    values = rows.groupby("cell", sort=False)["value"]
    means = values.mean()[values.size() == values.count()]
    if len(means) < 2:
        return {}
    best = means.idxmin() if metric in LOWER_IS_BETTER else means.idxmax()
    others = [cell for cell in means.index if cell != best]
    kept = rows[rows["cell"].isin(means.index)]
    found = differences(kept, dict.fromkeys(others, best), metric)
    behind = found["difference"] > 0 if metric in LOWER_IS_BETTER else found["difference"] < 0
    beaten = set(found.loc[(found["verdict"] == "different") & behind, "cell"])
    if beaten == set(others):
        return {best: "best"}
    return {cell: "tied" for cell in means.index if cell not in beaten}
