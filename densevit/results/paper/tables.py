"""The tables of a report, arranged so that they fit on a page of a paper."""

from __future__ import annotations

from collections.abc import Sequence

from densevit.config.run_config import SCIENCE
from densevit.results.analysis import Findings
from densevit.results.tables.best_cells import marked_table
from densevit.results.tables.costs import cost_table
from densevit.results.tables.differences import difference_table
from densevit.results.tables.effects import marginal_table
from densevit.results.tables.main_table import cell_table
from densevit.results.tables.table import TextTable
from densevit.sweep.cells import cell_values, value_text

PAGE = 84  # letters in a line of the text, in the size of a table


def paper_tables(found: Findings) -> dict[str, TextTable]:
    """Return the tables by the names of their files; those without rows are left out."""
    cells = found.cells[found.cells["cell"].isin(found.shown)]
    costs, frame = (t[t["cell"].isin(found.shown)] for t in (found.costs, found.frame))
    shown = found.differences[found.differences["cell"].isin(found.shown)]
    main = cell_table(found.plan, found.frame, found.metric, only=found.shown)
    tables = {
        "main": marked_table(main, found.frame),
        "differences": difference_table(shown, found.cells, found.smallest_effect),
        "effects": marginal_table(found.marginals, found.metric) if len(found.marginals) else None,
        "cost": cost_table(costs, frame, cells) if len(costs) else None,
        "hyperparameters": _hyperparameters(found),
    }
    return {name: fitted(table) for name, table in tables.items() if table and table.rows}


def fitted(table: TextTable) -> TextTable:
    """Return the table, turned on its side if it is wider than a page and narrower that way."""
    if letters(table) <= PAGE:
        return table
    turned = transposed(table)
    return turned if letters(turned) < letters(table) else table


def letters(table: TextTable) -> int:
    """Return the letters of a table's widest line, with two between columns."""
    lines: list[Sequence[str]] = [table.head, *table.rows]
    return sum(max(len(line[i]) for line in lines) + 2 for i in range(len(table.head)))


def transposed(table: TextTable) -> TextTable:
    """Return a row for each column of numbers, and a column for each row of the table."""
    first = table.numeric_from
    names = [" · ".join(text for text in row[:first] if text != "–") for row in table.rows]
    rows = [[table.head[j], *(row[j] for row in table.rows)] for j in range(first, len(table.head))]
    marks = {(j - first, i + 1): mark for (i, j), mark in table.marks.items()}
    return TextTable(table.title, ["", *names], rows, table.note, 1, marks)


def _hyperparameters(found: Findings) -> TextTable:
    """Return every setting that identifies a run: one value, or those that the cells differ in."""
    values = [cell_values(run.config, tuple(SCIENCE)) for run in found.plan.grid.cells]
    rows = []
    for name in SCIENCE:
        texts = list(dict.fromkeys(value_text(v[name]) for v in values if v[name] is not None))
        if texts and name != "seed":
            rows.append([name, ", ".join(texts)])
    seeds = ", ".join(map(str, found.plan.spec.seeds))
    title = "Settings of all runs; several values are those of the cells"
    return TextTable(title, ["setting", "value"], [*rows, ["seed", seeds]], numeric_from=2)
