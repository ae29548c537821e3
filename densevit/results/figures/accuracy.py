"""Accuracy of each cell on each benchmark, as dots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, product
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from densevit.results.figures.style import (
    COLUMN,
    INK,
    LETTER,
    LINE,
    LOOKS,
    MOST_LOOKS,
    ROW,
    SMALL,
    Legend,
    Look,
    bare,
    handle,
    letters,
    lines_in,
    new_figure,
    said,
    styled,
    unit,
    wrapped,
)
from densevit.results.tables import CellTable, metric_title

MOST_PANELS = 4  # side by side
LABEL = 24  # letters of a cell's label on a line
TALLEST = 9.0  # inches, a page
TITLE_LETTER = 0.062  # inches
ROWS = (ROW, 0.14, 0.125, LINE)  # inches, what a row may be high
LEAST_ROW = 0.096  # likewise, of the smallest letters

_Seeds = dict[tuple[str, str], list[float]]


def accuracy(table: CellTable, frame: pd.DataFrame) -> Figure:
    """Each cell on each benchmark: the mean, ± std over seeds, and every seed as a dot below.

    In place of ± std stands the 95 % interval of the mean where the table has it (`intervals`).
    A few cells are colours in one panel; more are rows, with a panel a benchmark. The axis need
    not start at zero, since dots show positions and not lengths; in panels side by side a point
    of accuracy has the same length everywhere. The figure is a column wide, and up to a page high
    (higher for more than forty cells, or many benchmarks or long labels beside that).
    """
    with styled():
        if len(table.data) <= MOST_LOOKS:
            return _few_cells(table, frame)
        return _many_cells(table, frame)


class _Dots(NamedTuple):
    """One cell on one benchmark: where it is drawn and what."""

    y: float
    mean: float
    low: float
    high: float
    seeds: list[float]
    look: Look


def _few_cells(table: CellTable, frame: pd.DataFrame) -> Figure:
    """One panel: a group of rows a benchmark, a colour and a marker a cell."""
    cells, groups = len(table.data), len(table.benchmarks)
    seeds = _seeds(table, frame)
    legend = Legend(list(table.data["label"]))
    figure = new_figure(COLUMN, ROW * (cells + 1) * groups + legend.height + 0.55)
    axes = figure.add_subplot()
    dots = [
        _dots(table, seeds, cell, name, g * (cells + 1) + cell, cell)
        for g, name in enumerate(table.benchmarks)
        for cell in range(cells)
    ]
    _draw(axes, dots, *_limits(table.metric, dots, _span(table.metric, dots)))
    axes.set_yticks(
        [g * (cells + 1) + (cells - 1) / 2 for g in range(groups)],
        [wrapped(name, 16) for name in table.benchmarks],
    )
    axes.set_ylim(groups * (cells + 1) - 1, -1)
    for g in range(1, groups):
        axes.axhline(g * (cells + 1) - 1, color="#dddddd", linewidth=0.5)
    axes.set_xlabel(_label(table))
    legend.draw(figure, [handle(look) for look in LOOKS[:cells]])
    return figure


def _many_cells(table: CellTable, frame: pd.DataFrame) -> Figure:
    """A panel a benchmark, a row a cell; the labels stand once a line of panels."""
    cells, panels = len(table.data), len(table.benchmarks)
    seeds = _seeds(table, frame)
    labels = [wrapped(label, LABEL) for label in table.data["label"]]
    shape = _shape(table.benchmarks, labels)
    grown = _grown(labels, shape.row)
    figure = new_figure(COLUMN, shape.height)
    grid = figure.subplots(
        math.ceil(panels / shape.columns), shape.columns, sharey=True, squeeze=False
    )
    ends = list(accumulate(grown))
    places = [end - own / 2 - 0.5 for end, own in zip(ends, grown, strict=True)]
    drawn = [
        [_dots(table, seeds, cell, name, places[cell], 0) for cell in range(cells)]
        for name in table.benchmarks
    ]
    span = max(_span(table.metric, dots) for dots in drawn)
    for number, axes in enumerate(grid.flat):
        if number >= panels:
            axes.set_visible(False)
            continue
        limits = _limits(table.metric, drawn[number], span)
        size = 4.4 if shape.columns < 3 else 3.4
        _draw(axes, drawn[number], *limits, ticks=max(3, 6 - shape.columns), size=size)
        axes.set_title(shape.titles[number], loc="left", pad=3)
        axes.set_yticks(places, labels, fontsize=SMALL if shape.row < LINE else None)
        axes.set_ylim(ends[-1] - 0.4, -0.6)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
    figure.supxlabel(_label(table), fontsize=7)
    return figure


class _Shape(NamedTuple):
    """How many panels stand side by side, the titles, and inches: of a row, and of the figure."""

    columns: int
    titles: list[str]
    row: float
    height: float


def _shape(names: Sequence[str], labels: Sequence[str]) -> _Shape:
    """Two panels side by side, or, where these would make a figure taller than a page, lower rows,
    and then more panels."""
    beside = LETTER * max(letters(line) for label in labels for line in label.split("\n"))
    most = min(len(names), MOST_PANELS)
    for columns, row in [*product(range(min(2, most), most + 1), ROWS), (most, LEAST_ROW)]:
        width = (COLUMN - beside) / columns
        titles = [wrapped(name, max(9, int((width - 0.1) / TITLE_LETTER))) for name in names]
        rows = row * sum(_grown(labels, row))
        each = rows + 0.28 + LINE * lines_in(titles)
        height = math.ceil(len(names) / columns) * each + 0.25
        if height <= TALLEST:
            break
    return _Shape(columns, titles, row, height)


def _grown(labels: Sequence[str], row: float) -> list[float]:
    """How high each cell's row is for its label, in rows."""
    return [max(1.0, LINE * lines_in([label]) / row if "\n" in label else 1.0) for label in labels]


def _seeds(table: CellTable, frame: pd.DataFrame) -> _Seeds:
    """The value of each seed by cell and benchmark."""
    chosen = (frame["metric"] == table.metric) & frame["cell"].isin(table.data["cell"])
    found: _Seeds = {}
    for row in frame.loc[chosen, ["cell", "benchmark", "value"]].itertuples(index=False):
        found.setdefault((row.cell, row.benchmark), []).append(row.value)
    return found


def _dots(
    table: CellTable, seeds: _Seeds, cell: int, benchmark: str, y: float, color: int
) -> _Dots:
    row = table.data.iloc[cell]
    mean, std = row[f"{benchmark}_mean"], row[f"{benchmark}_std"]
    low, high = mean - std, mean + std
    if table.intervals:
        low, high = row[f"{benchmark}_low"], row[f"{benchmark}_high"]
    return _Dots(y, mean, low, high, seeds.get((row["cell"], benchmark), []), LOOKS[color])


def _label(table: CellTable) -> str:
    """What the axis shows."""
    title = metric_title(table.metric)
    return f"{title}, 95 % interval" if table.intervals else title


def _range(dots: list[_Dots]) -> tuple[float, float]:
    values = [v for d in dots for v in (*d.seeds, d.low, d.high)]
    values = [v for v in values if math.isfinite(v)]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _is_percent(metric: str) -> bool:
    return unit(metric) == "points"


def _span(metric: str, dots: list[_Dots]) -> float:
    """How much an axis must hold, at least two points: noise must not fill a panel."""
    low, high = _range(dots)
    return max(1.15 * (high - low), 2.0 if _is_percent(metric) else 0.02)


def _limits(metric: str, dots: list[_Dots], span: float) -> tuple[float, float]:
    """An axis of that span around what it shows; a percentage has no axis beyond 0 and 100."""
    low, high = _range(dots)
    start = (low + high - span) / 2
    if _is_percent(metric):
        span = min(span, 100.0)
        start = min(max(start, 0.0), 100.0 - span)
    return start, start + span


def _draw(
    axes: Axes, dots: list[_Dots], low: float, high: float, ticks: int = 5, size: float = 4.4
) -> None:
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.5)
    bare(axes, "left")
    axes.tick_params(axis="y", length=0)
    for d in dots:
        if not d.seeds or math.isnan(d.mean):
            said(axes, d.y, "not a number" if d.seeds else "missing", d.look.color)
            continue
        if len(d.seeds) > 1:
            axes.plot([d.low, d.high], [d.y, d.y], color=d.look.color, linewidth=1.0)
            axes.plot(
                d.seeds, [d.y + 0.36] * len(d.seeds), linestyle="", marker=".", markersize=2.6,
                markerfacecolor=INK, markeredgewidth=0, alpha=0.7, clip_on=False,
            )  # fmt: skip
        axes.plot(
            [d.mean], [d.y], linestyle="", marker=d.look.marker, markersize=size, clip_on=False,
            markerfacecolor=d.look.color, markeredgecolor="white", markeredgewidth=0.4, zorder=3,
        )  # fmt: skip
