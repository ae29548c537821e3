"""Parts of figures: panels side by side, rows of cells, groups of rows, cells as points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from densevit.results.figures.style import FAINT, INK, SMALL, Style, wrapped


def panels(
    figure: Figure, count: int, columns: int, *, sharex: bool = False, sharey: bool = False
) -> list[Axes]:
    """Return the axes of `count` panels, `columns` side by side."""
    rows = math.ceil(count / columns)
    grid = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return list(grid.flat[:count])


def despine(axes: Axes, *sides: str) -> None:
    """Hide these sides of the frame, and the top and right ones."""
    axes.spines[["top", "right", *sides]].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=2)


def row_axes(axes: Axes, ticks: int) -> None:
    """Prepare axes whose rows are cells or levels: up to `ticks` + 1 round ticks, no left side."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.5)
    despine(axes, "left")
    axes.tick_params(axis="y", length=0)


def label_groups(axes: Axes, names: Sequence[str], rows: int) -> None:
    """Label and separate groups of `rows` rows; a group begins every `rows` + 1 rows."""
    step = rows + 1
    places = [group * step + (rows - 1) / 2 for group in range(len(names))]
    axes.set_yticks(places, [wrapped(name, 16) for name in names])
    axes.set_ylim(len(names) * step - 1, -1)
    for group in range(1, len(names)):
        axes.axhline(group * step - 1, color="#dddddd", linewidth=0.5)


def write_in_row(axes: Axes, y: float, text: str, color: str = INK) -> None:
    """Write at the left of a row that has nothing to draw."""
    axes.text(
        0.02, y, text, color=color, fontsize=SMALL, style="italic", va="center",
        transform=axes.get_yaxis_transform(),
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def draw_cell(axes: Axes, x: pd.Series, y: pd.Series, style: Style | None) -> None:
    """Draw a cell's mean over its seeds, and the seeds as dots; without a style a hollow circle."""
    if style is None:
        axes.plot(
            [x.mean()], [y.mean()], linestyle="", marker="o", markersize=3.2,
            markerfacecolor="none", markeredgecolor=FAINT, markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
        return
    if len(x) > 1:
        axes.plot(
            x, y, linestyle="", marker=".", markersize=2.4, markerfacecolor=style.color,
            markeredgewidth=0, alpha=0.7, zorder=4,
        )  # fmt: skip
    axes.plot(
        [x.mean()], [y.mean()], linestyle="", marker=style.marker, markersize=4.6,
        markerfacecolor=style.color, markeredgecolor="white", markeredgewidth=0.5, zorder=5,
    )  # fmt: skip
