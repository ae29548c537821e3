"""Accuracy of each cell on each benchmark, as dots."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from densevit.results.figures.style import (
    COLUMN,
    INK,
    LOOKS,
    MOST_LOOKS,
    ROW,
    Legend,
    Look,
    bare,
    handle,
    new_figure,
    said,
    styled,
    unit,
    wrapped,
)
from densevit.results.tables import CellTable, metric_title

MOST_PANELS = 4  # side by side

_Seeds = dict[tuple[str, str], list[float]]


def accuracy(table: CellTable, frame: pd.DataFrame) -> Figure:
    """Each cell on each benchmark: the mean, ± std over seeds, and every seed as a dot below.

    In place of ± std stands the 95 % interval of the mean where the table has it (`intervals`).
    A few cells are colours in one panel; more are rows, with a panel a benchmark. The axis need
    not start at zero, since dots show positions and not lengths; in panels side by side a point
    of accuracy has the same length everywhere. Beside many panels the figure grows to two columns.
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
    """A panel a benchmark, a row a cell."""
    cells, panels = len(table.data), len(table.benchmarks)
    seeds = _seeds(table, frame)
    columns = min(panels, MOST_PANELS)
    lines = math.ceil(panels / columns)
    labels = [wrapped(label, 44) for label in table.data["label"]]
    spread = max(label.count("\n") + 1 for label in labels)
    label_width = 0.055 * max(len(line) for label in labels for line in label.split("\n"))
    figure = new_figure(
        max(COLUMN, label_width + 1.35 * columns),
        lines * (ROW * cells * max(1, 0.65 * spread) + 0.35) + 0.35,
    )
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    drawn = [
        [_dots(table, seeds, cell, name, cell, 0) for cell in range(cells)]
        for name in table.benchmarks
    ]
    span = max(_span(table.metric, dots) for dots in drawn)
    for number, axes in enumerate(grid.flat):
        if number >= panels:
            axes.set_visible(False)
            continue
        _draw(axes, drawn[number], *_limits(table.metric, drawn[number], span))
        axes.set_title(wrapped(table.benchmarks[number], 24), loc="left")
        axes.set_yticks(range(cells), labels)
        axes.set_ylim(cells - 0.4, -0.6)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
    figure.supxlabel(_label(table), fontsize=7)
    return figure


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


def _draw(axes: Axes, dots: list[_Dots], low: float, high: float) -> None:
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
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
            [d.mean], [d.y], linestyle="", marker=d.look.marker, markersize=4.4, clip_on=False,
            markerfacecolor=d.look.color, markeredgecolor="white", markeredgewidth=0.4, zorder=3,
        )  # fmt: skip
