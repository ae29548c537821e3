"""Figures of a sweep, readable in a paper's column and by the colour-blind.

Nothing of the user's matplotlib is touched: no pyplot, no backend, settings only for a drawing.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from densevit.results.tables import METRICS, CellTable
from densevit.rundir import replacing

# Okabe and Ito, "Color Universal Design" (2008), without black and the yellow that paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT = "#222222", "#777777"
COLUMN = 3.5  # inches, a column of a two-column paper
ROW = 0.16  # inches, a row of dots
MOST_PANELS = 4  # side by side

_STYLE = {
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "pdf.fonttype": 42,  # letters stay letters for the publisher's check
    "savefig.dpi": 300,
}


def save_accuracy(table: CellTable, frame: pd.DataFrame, png: Path, pdf: Path) -> None:
    """Draw `accuracy` and write it as PNG (300 dpi) and PDF."""
    with _style():
        figure = accuracy(table, frame)
        for path in (png, pdf):
            kind = path.suffix[1:]
            # Without the date the same numbers give the same bytes.
            metadata = {"CreationDate": None} if kind == "pdf" else None
            with replacing(path) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)


def accuracy(table: CellTable, frame: pd.DataFrame) -> Figure:
    """Each cell on each benchmark: the mean, ± std over seeds, and every seed as a dot below.

    A few cells are colours in one panel; more are rows, with a panel a benchmark. The axis need
    not start at zero, since dots show positions and not lengths; in panels side by side a point
    of accuracy has the same length everywhere.
    """
    with _style():
        if len(table.data) <= len(PALETTE):
            return _few_cells(table, frame)
        return _many_cells(table, frame)


class _Dots(NamedTuple):
    """One cell on one benchmark: where it is drawn and what."""

    y: float
    mean: float
    std: float
    seeds: list[float]
    color: str
    marker: str


def _few_cells(table: CellTable, frame: pd.DataFrame) -> Figure:
    """One panel: a group of rows a benchmark, a colour and a marker a cell."""
    cells, groups = len(table.data), len(table.benchmarks)
    labels = [_wrapped(label, 40) for label in table.data["label"]]
    legend_lines = sum(label.count("\n") + 1 for label in labels)
    height = ROW * ((cells + 1) * groups + legend_lines) + 0.55
    figure = _figure(COLUMN, height)
    axes = figure.add_subplot()
    dots = [
        _dots(table, frame, cell, name, g * (cells + 1) + cell, cell)
        for g, name in enumerate(table.benchmarks)
        for cell in range(cells)
    ]
    _draw(axes, dots, *_limits(table.metric, dots, _span(table.metric, dots)))
    axes.set_yticks(
        [g * (cells + 1) + (cells - 1) / 2 for g in range(groups)],
        [_wrapped(name, 16) for name in table.benchmarks],
    )
    axes.set_ylim(groups * (cells + 1) - 1, -1)
    for g in range(1, groups):
        axes.axhline(g * (cells + 1) - 1, color="#dddddd", linewidth=0.5)
    axes.set_xlabel(METRICS[table.metric][0])
    handles = [
        Line2D([], [], color=PALETTE[i], marker=MARKERS[i], markersize=4, linewidth=0, label=label)
        for i, label in enumerate(labels)
    ]
    figure.legend(handles=handles, loc="outside upper left", frameon=False, handletextpad=0.2)
    return figure


def _many_cells(table: CellTable, frame: pd.DataFrame) -> Figure:
    """A panel a benchmark, a row a cell."""
    cells, panels = len(table.data), len(table.benchmarks)
    columns = min(panels, MOST_PANELS)
    lines = math.ceil(panels / columns)
    labels = [_wrapped(label, 44) for label in table.data["label"]]
    spread = max(label.count("\n") + 1 for label in labels)
    label_width = 0.055 * max(len(line) for label in labels for line in label.split("\n"))
    figure = _figure(
        max(COLUMN, label_width + 1.35 * columns),
        lines * (ROW * cells * max(1, 0.65 * spread) + 0.35) + 0.35,
    )
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    drawn = [
        [_dots(table, frame, cell, name, cell, 0) for cell in range(cells)]
        for name in table.benchmarks
    ]
    span = max(_span(table.metric, dots) for dots in drawn)
    for number, axes in enumerate(grid.flat):
        if number >= panels:
            axes.set_visible(False)
            continue
        _draw(axes, drawn[number], *_limits(table.metric, drawn[number], span))
        axes.set_title(table.benchmarks[number], loc="left")
        axes.set_yticks(range(cells), labels)
        axes.set_ylim(cells - 0.4, -0.6)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
    figure.supxlabel(METRICS[table.metric][0], fontsize=7)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _dots(
    table: CellTable, frame: pd.DataFrame, cell: int, benchmark: str, y: float, color: int
) -> _Dots:
    row = table.data.iloc[cell]
    rows = frame[
        (frame["cell"] == row["cell"])
        & (frame["benchmark"] == benchmark)
        & (frame["metric"] == table.metric)
    ]
    mean, std = row[f"{benchmark}_mean"], row[f"{benchmark}_std"]
    return _Dots(y, mean, std, list(rows["value"]), PALETTE[color], MARKERS[color])


def _range(dots: list[_Dots]) -> tuple[float, float]:
    values = [v for d in dots for v in (*d.seeds, d.mean - d.std, d.mean + d.std)]
    values = [v for v in values if math.isfinite(v)]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _span(metric: str, dots: list[_Dots]) -> float:
    """How much an axis must hold, at least two points: noise must not fill a panel."""
    low, high = _range(dots)
    return max(1.15 * (high - low), 2.0 if metric != "nll" else 0.02)


def _limits(metric: str, dots: list[_Dots], span: float) -> tuple[float, float]:
    """An axis of that span around what it shows; a percentage has no axis beyond 0 and 100."""
    low, high = _range(dots)
    start = (low + high - span) / 2
    if metric != "nll":
        span = min(span, 100.0)
        start = min(max(start, 0.0), 100.0 - span)
    return start, start + span


def _draw(axes: Axes, dots: list[_Dots], low: float, high: float) -> None:
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for d in dots:
        if not d.seeds or math.isnan(d.mean):
            word = "not a number" if d.seeds else "missing"
            axes.text(
                0.02, d.y, word, color=d.color, fontsize=5.5, style="italic", va="center",
                transform=axes.get_yaxis_transform(),
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
            continue
        if len(d.seeds) > 1:
            axes.plot([d.mean - d.std, d.mean + d.std], [d.y, d.y], color=d.color, linewidth=1.0)
            axes.plot(
                d.seeds, [d.y + 0.36] * len(d.seeds), linestyle="", marker=".", markersize=2.6,
                markerfacecolor=INK, markeredgewidth=0, alpha=0.7, clip_on=False,
            )  # fmt: skip
        axes.plot(
            [d.mean], [d.y], linestyle="", marker=d.marker, markersize=4.4, clip_on=False,
            markerfacecolor=d.color, markeredgecolor="white", markeredgewidth=0.4, zorder=3,
        )  # fmt: skip


def _wrapped(text: str, width: int) -> str:
    """Text over several lines, with dollar signs that matplotlib does not read as formulas."""
    return "\n".join(textwrap.wrap(text, width) or [""]).replace("$", r"\$")


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults with ours over them, and the user's settings back afterwards."""
    with mpl.rc_context(), mpl.style.context(["default", _STYLE]):
        yield
