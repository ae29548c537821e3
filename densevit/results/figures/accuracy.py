"""Accuracy of each cell on each benchmark, as dots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, product
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from densevit.results.figures.layout import panels, row_axes, write_in_row
from densevit.results.figures.style import (
    COLUMN,
    INK,
    LETTER,
    LINE,
    MOST_STYLES,
    ROW,
    SMALL,
    STYLES,
    Style,
    letters,
    lines_in,
    literal,
    new_figure,
    styled,
    wrapped,
)
from densevit.results.stats.ranking import image_rows
from densevit.results.tables.format import metric_title
from densevit.results.tables.main_table import CellTable

MOST_PANELS = 4  # side by side
LABEL = 24  # letters per line of a cell's label
TALLEST = 9.0  # inches, a page
TITLE_LETTER = 0.062  # inches
ROWS = (ROW, 0.14, 0.125, LINE)  # inches, possible heights of a row
LEAST_ROW = 0.096  # inches, for the smallest letters

_Seeds = dict[tuple[str, str], list[float]]


def accuracy(table: CellTable, frame: pd.DataFrame) -> Figure:
    """Draw each cell's accuracy on each benchmark: mean, ± std over seeds, and every seed as a dot.

    One panel per benchmark and a row per cell; a few cells have the colors and markers of the other
    figures. The axis need not start at zero: dots show positions, not lengths. In all panels, a
    point of accuracy has the same length. The figure is a column wide and up to a page high (higher
    with more than forty cells, or with many benchmarks or long labels besides).
    """
    with styled():
        return _panels(table, frame)


class _Dots(NamedTuple):
    """One cell on one benchmark: its position and its values."""

    y: float
    mean: float
    low: float
    high: float
    seeds: list[float]
    style: Style


def _panels(table: CellTable, frame: pd.DataFrame) -> Figure:
    """Draw a panel per benchmark and a row per cell; labels appear once per line of panels."""
    seeds = _seeds(frame)
    labels = [wrapped(label, LABEL) for label in table.data["label"]]
    shape = _shape(table.benchmarks, labels)
    heights = _heights_in_rows(labels, shape.row)
    figure = new_figure(COLUMN, shape.height)
    ends = list(accumulate(heights))
    places = [end - own / 2 - 0.5 for end, own in zip(ends, heights, strict=True)]
    styles = STYLES if len(labels) <= MOST_STYLES else STYLES[:1] * len(labels)
    drawn = [
        [_dots(table, seeds, cell, name, y, styles[cell]) for cell, y in enumerate(places)]
        for name in table.benchmarks
    ]
    span = max(_span(dots) for dots in drawn)
    size = 4.4 if shape.columns < 3 else 3.4
    grid = panels(figure, len(drawn), shape.columns, sharey=True)
    for axes, dots, title in zip(grid, drawn, shape.titles, strict=True):
        _draw(axes, dots, span, max(3, 6 - shape.columns), size)
        axes.set_title(title, loc="left", pad=3)
        axes.set_yticks(places, labels, fontsize=SMALL if shape.row < LINE else None)
        axes.set_ylim(ends[-1] - 0.4, -0.6)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
    figure.supxlabel(literal(metric_title(table.metric)), fontsize=7)
    return figure


class _Shape(NamedTuple):
    """The layout: panels side by side, their titles, and the heights of a row and the figure."""

    columns: int
    titles: list[str]
    row: float
    height: float


def _shape(names: Sequence[str], labels: Sequence[str]) -> _Shape:
    """Choose two panels side by side; if taller than a page, lower rows, and then more panels."""
    labels_width = LETTER * max(letters(line) for label in labels for line in label.split("\n"))
    most = min(len(names), MOST_PANELS)
    for columns, row in [*product(range(min(2, most), most + 1), ROWS), (most, LEAST_ROW)]:
        width = (COLUMN - labels_width) / columns
        titles = [wrapped(name, max(9, int((width - 0.1) / TITLE_LETTER))) for name in names]
        rows = row * sum(_heights_in_rows(labels, row))
        each = rows + 0.28 + LINE * lines_in(titles)
        height = math.ceil(len(names) / columns) * each + 0.25
        if height <= TALLEST:
            break
    return _Shape(columns, titles, row, height)


def _heights_in_rows(labels: Sequence[str], row: float) -> list[float]:
    """Return the height that each cell's label needs, in rows."""
    return [max(1.0, LINE * lines_in([label]) / row if "\n" in label else 1.0) for label in labels]


def _seeds(frame: pd.DataFrame) -> _Seeds:
    """Return the values of all seeds by cell and benchmark."""
    rows = image_rows(frame)
    found: _Seeds = {}
    for cell, benchmark, value in zip(rows["cell"], rows["benchmark"], rows["value"], strict=True):
        found.setdefault((cell, benchmark), []).append(value)
    return found


def _dots(
    table: CellTable, seeds: _Seeds, cell: int, benchmark: str, y: float, style: Style
) -> _Dots:
    row = table.data.iloc[cell]
    mean, std = row[f"{benchmark}_mean"], row[f"{benchmark}_std"]
    return _Dots(y, mean, mean - std, mean + std, seeds.get((row["cell"], benchmark), []), style)


def _range(dots: list[_Dots]) -> tuple[float, float]:
    values = [v for d in dots for v in (*d.seeds, d.low, d.high) if math.isfinite(v)]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _span(dots: list[_Dots]) -> float:
    """Return the points that an axis needs, at least two: noise must not fill a panel."""
    low, high = _range(dots)
    return min(max(1.15 * (high - low), 2.0), 100.0)


def _draw(axes: Axes, dots: list[_Dots], span: float, ticks: int, size: float) -> None:
    """Draw dots on an axis of that span around them, within 0 and 100."""
    low, high = _range(dots)
    start = min(max((low + high - span) / 2, 0.0), 100.0 - span)
    axes.set_xlim(start, start + span)
    row_axes(axes, ticks)
    for d in dots:
        color = d.style.color
        if not d.seeds or math.isnan(d.mean):
            write_in_row(axes, d.y, "not a number" if d.seeds else "missing", color)
            continue
        if len(d.seeds) > 1:
            axes.plot([d.low, d.high], [d.y, d.y], color=INK, linewidth=0.8, zorder=4)
            axes.plot(
                d.seeds, [d.y + 0.36] * len(d.seeds), linestyle="", marker="|", markersize=3.0,
                markeredgecolor=color, markeredgewidth=0.7, clip_on=False,
            )  # fmt: skip
        axes.plot(
            [d.mean], [d.y], linestyle="", marker=d.style.marker, markersize=size, clip_on=False,
            markerfacecolor=color, markeredgecolor="white", markeredgewidth=0.4, zorder=3,
        )  # fmt: skip
