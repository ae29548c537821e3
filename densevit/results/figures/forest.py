"""Differences to the baseline, as a forest plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from densevit.results.figures.rows import Row, draw_rows, reach
from densevit.results.figures.style import (
    COLUMN,
    INK,
    LINE,
    LOOKS,
    MOST_LOOKS,
    ROW,
    Legend,
    Look,
    handle,
    labels_of,
    lines_in,
    new_figure,
    note,
    note_height,
    styled,
    unit,
    wrapped,
)

MOST_ROWS = 12  # cells, when each has a row in a panel a benchmark
LABEL = 24  # letters of a cell's label on a line
_ALONE = Look(INK, "o", "-")


def forest(
    differences: pd.DataFrame,
    cells: pd.DataFrame,
    *,
    wanted: float | None = None,
    names: Mapping[str, str] | None = None,
    label: str | None = None,
) -> Figure | None:
    """Each cell's difference to its baseline on each benchmark with its 95 % interval; None if
    there are no differences.

    `differences` is `stats.differences`, `cells` is `cells_frame`; `names` are words for a cell to
    show in place of its label; `wanted` shades the differences under it. Filled: verdict different.
    A few cells are looks in one panel; more are rows, with a panel a benchmark. Of more than
    `MOST_ROWS` those are shown whose differences are decided, and then the largest; a note says
    so. All panels have the same axis.
    """
    differences = differences[differences["cell"].isin(cells["cell"])]
    if differences.empty:
        return None
    known = {**labels_of(cells), **(names or {})}
    order = list(cells.loc[cells["cell"].isin(differences["cell"]), "cell"])
    shown = order if len(order) <= MOST_ROWS else _telling(differences, order)
    texts = _notes(differences, len(shown), len(order), wanted)
    title = label or f"difference to the baseline ({unit(differences['metric'].iloc[0])})"
    kept = differences[differences["cell"].isin(shown)]
    words = {cell: str(known.get(cell, cell)) for cell in shown}
    with styled():
        draw = _few if len(shown) <= MOST_LOOKS else _many
        return draw(kept, words, wanted, title, texts)


def _few(
    rows: pd.DataFrame, words: dict[str, str], wanted: float | None, title: str, texts: list[str]
) -> Figure:
    """One panel: a group of rows a benchmark, a look a cell."""
    names, cells = list(dict.fromkeys(rows["benchmark"])), list(words)
    legend, step = Legend(list(words.values())), len(cells) + 1
    height = 0.15 * step * len(names) + legend.height + note_height(texts) + 0.45
    figure = new_figure(COLUMN, height)
    axes = figure.add_subplot()
    drawn = [
        _row(rows, cell, name, g * step + i, LOOKS[i])
        for g, name in enumerate(names)
        for i, cell in enumerate(cells)
    ]
    drawn = [row for row in drawn if row]
    draw_rows(axes, drawn, reach(drawn, wanted), wanted)
    places = [g * step + (len(cells) - 1) / 2 for g in range(len(names))]
    axes.set_yticks(places, [wrapped(name, 16) for name in names])
    axes.set_ylim(len(names) * step - 1, -1)
    for g in range(1, len(names)):
        axes.axhline(g * step - 1, color="#dddddd", linewidth=0.5)
    axes.set_xlabel(title)
    note(figure, texts)
    legend.draw(figure, [handle(look) for look in LOOKS[: len(cells)]])
    return figure


def _many(
    rows: pd.DataFrame, words: dict[str, str], wanted: float | None, title: str, texts: list[str]
) -> Figure:
    """A panel a benchmark, two side by side, a row a cell."""
    names, cells = list(dict.fromkeys(rows["benchmark"])), list(words)
    labels = [wrapped(text, LABEL) for text in words.values()]
    columns = min(2, len(names))
    lines = math.ceil(len(names) / columns)
    each = max(ROW * 0.85, LINE * lines_in(labels))
    height = lines * (each * len(cells) + 0.36) + note_height(texts) + 0.25
    figure = new_figure(COLUMN, height)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    drawn = [[_row(rows, cell, name, i, _ALONE) for i, cell in enumerate(cells)] for name in names]
    limits = reach([row for panel in drawn for row in panel if row], wanted)
    for number, axes in enumerate(grid.flat):
        if number >= len(names):
            axes.set_visible(False)
            continue
        draw_rows(axes, [row for row in drawn[number] if row], limits, wanted)
        axes.set_title(wrapped(names[number], 20), loc="left", pad=3)
        axes.set_yticks(range(len(cells)), labels)
        axes.set_ylim(len(cells) - 0.4, -0.6)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
        axes.tick_params(axis="x", labelbottom=number + columns >= len(names))
    note(figure, [f"Axis: {title}.", *texts])
    return figure


def _row(rows: pd.DataFrame, cell: str, name: str, y: float, look: Look) -> Row | None:
    found = rows[(rows["cell"] == cell) & (rows["benchmark"] == name)]
    if found.empty:
        return None
    row = found.iloc[0]
    return Row(y, row["difference"], row["low"], row["high"], look, row["verdict"] == "different")


def _telling(differences: pd.DataFrame, order: Sequence[str]) -> list[str]:
    """The cells with most decided differences, and of equals those with the largest one."""
    by_cell = differences.assign(
        decided=differences["verdict"] == "different", size=differences["difference"].abs()
    ).groupby("cell")
    ranks = by_cell.agg({"decided": "sum", "size": "max"}).fillna({"size": 0.0})
    best = ranks.loc[list(order)].sort_values(["decided", "size"], ascending=False, kind="stable")
    kept = set(best.index[:MOST_ROWS])
    return [cell for cell in order if cell in kept]


def _notes(differences: pd.DataFrame, shown: int, total: int, wanted: float | None) -> list[str]:
    texts = ["Lines: 95 % intervals. Filled: decided (Holm, p < 0.05)."]
    if wanted:
        texts.append(f"Grey: ±{wanted:g}.")
    if (differences["verdict"] == "single").any():
        texts.append("Without a line: fewer than two common seeds.")
    if shown < total:
        texts.append(
            f"{shown} of {total} cells: those with decided differences, then the largest ones."
        )
    return texts
