"""Differences from the baseline, as a forest plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from densevit.results.figures.interval_rows import PLAIN, Row, draw_rows, interval_notes, limits
from densevit.results.figures.layout import label_groups, panels
from densevit.results.figures.legend import Legend, handle, note, note_height
from densevit.results.figures.style import (
    COLUMN,
    LINE,
    MOST_STYLES,
    ROW,
    Style,
    assign_styles,
    labels_of,
    lines_in,
    new_figure,
    styled,
    wrapped,
)

MOST_ROWS = 12  # cells, if each has a row in one panel per benchmark
LABEL = 24  # letters per line of a cell's label
_TITLE = "difference from the baseline (points)"


def forest(
    differences: pd.DataFrame,
    cells: pd.DataFrame,
    *,
    smallest_effect: float | None = None,
    names: Mapping[str, str] | None = None,
) -> Figure | None:
    """Draw each cell's difference from its baseline on each benchmark with its 95 % interval.

    Return None without differences. `differences` is `seeds.differences` of an accuracy, `cells` is
    `cells_frame`; `names` replace labels of cells; `smallest_effect` shades smaller differences.
    Filled: established. A few cells have a style each in one panel; more are rows, with one
    panel per benchmark. Of more than `MOST_ROWS`, those with established differences are shown,
    then those with the largest; a note says so. All panels have the same axis.
    """
    differences = differences[differences["cell"].isin(cells["cell"])]
    if differences.empty:
        return None
    order = list(cells.loc[cells["cell"].isin(differences["cell"]), "cell"])
    shown = order if len(order) <= MOST_ROWS else _most_informative(differences, order)
    known = {**labels_of(cells), **(names or {})}
    labels = {cell: known[cell] for cell in shown}
    # Each cell looks as in the other figures, which begin with the baseline.
    styles = assign_styles(list(cells["cell"]), shown)
    texts = interval_notes(smallest_effect)
    if (differences["verdict"] == "single").any():
        texts.append("Without a line: fewer than two common seeds.")
    if len(shown) < len(order):
        texts.append(
            f"{len(shown)} of {len(order)} cells are shown: those with established differences, "
            "then those with the largest."
        )
    rows = differences[differences["cell"].isin(shown)]
    with styled():
        if len(shown) <= MOST_STYLES:
            return _few_cells(rows, labels, styles, smallest_effect, texts)
        return _many_cells(rows, labels, smallest_effect, texts)


def _few_cells(
    rows: pd.DataFrame,
    labels: Mapping[str, str],
    styles: Mapping[str, Style],
    smallest_effect: float | None,
    texts: list[str],
) -> Figure:
    """Draw one panel: a group of rows per benchmark, a style per cell."""
    names, step = list(dict.fromkeys(rows["benchmark"])), len(labels) + 1
    legend = Legend(list(labels.values()))
    height = 0.15 * step * len(names) + legend.height + note_height(texts) + 0.45
    figure = new_figure(COLUMN, height)
    axes = figure.add_subplot()
    drawn = [
        row
        for g, name in enumerate(names)
        for i, cell in enumerate(labels)
        for row in _row(rows, cell, name, g * step + i, styles[cell])
    ]
    draw_rows(axes, drawn, limits(drawn, smallest_effect), smallest_effect)
    label_groups(axes, names, len(labels))
    axes.set_xlabel(_TITLE)
    note(figure, texts)
    legend.draw(figure, [handle(styles[cell]) for cell in labels])
    return figure


def _many_cells(
    rows: pd.DataFrame, labels: Mapping[str, str], smallest_effect: float | None, texts: list[str]
) -> Figure:
    """Draw a panel per benchmark, two side by side, and a row per cell."""
    names = list(dict.fromkeys(rows["benchmark"]))
    ticks = [wrapped(text, LABEL) for text in labels.values()]
    columns = min(2, len(names))
    each = max(ROW * 0.85, LINE * lines_in(ticks)) * len(labels) + 0.36
    texts = [f"Axis: {_TITLE}.", *texts]
    figure = new_figure(COLUMN, -(-len(names) // columns) * each + note_height(texts) + 0.25)
    drawn = [
        [row for i, cell in enumerate(labels) for row in _row(rows, cell, name, i, PLAIN)]
        for name in names
    ]
    xlim = limits([row for panel in drawn for row in panel], smallest_effect)
    for number, axes in enumerate(panels(figure, len(names), columns, sharex=True, sharey=True)):
        draw_rows(axes, drawn[number], xlim, smallest_effect)
        axes.set_title(wrapped(names[number], 20), loc="left", pad=3)
        axes.set_yticks(range(len(labels)), ticks)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
        axes.tick_params(axis="x", labelbottom=number + columns >= len(names))
    note(figure, texts)
    return figure


def _row(rows: pd.DataFrame, cell: str, benchmark: str, y: float, style: Style) -> list[Row]:
    """Return the row of a cell on a benchmark; none if there is no such difference."""
    found = rows[(rows["cell"] == cell) & (rows["benchmark"] == benchmark)]
    return [
        Row(y, row.difference, row.low, row.high, style, row.verdict == "established")
        for row in found.head(1).itertuples(index=False)
    ]


def _most_informative(differences: pd.DataFrame, order: Sequence[str]) -> list[str]:
    """Return the cells with most established differences; among equals, those with the largest."""
    by_cell = differences.assign(
        established=differences["verdict"] == "established", size=differences["difference"].abs()
    ).groupby("cell")
    ranks = by_cell.agg({"established": "sum", "size": "max"}).fillna({"size": 0.0})
    best = ranks.loc[list(order)].sort_values(
        ["established", "size"], ascending=False, kind="stable"
    )
    chosen = set(best.index[:MOST_ROWS])
    return [cell for cell in order if cell in chosen]
