"""Accuracy over two axes of a sweep, as a heat map."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from densevit.errors import UserError, nearest
from densevit.results.figures.style import (
    COLUMN,
    FAINT,
    INK,
    LETTER,
    LINE,
    SMALL,
    lines_in,
    new_figure,
    note,
    note_height,
    seed_means,
    styled,
    wrapped,
)
from densevit.results.tables import LOWER_IS_BETTER, decimals, metric_title
from densevit.sweep.grid import value_word

MOST_PANELS = 4  # settings of the other axes that have a panel each; more are averaged
MOST_OUTSIDE = 3  # cells without a place in the grid that the note names
_COLOURS = "viridis"  # grows lighter evenly, for the colour-blind and in grey print too
_SQUARE = 0.2  # inches, the height of a row


class _Grid(NamedTuple):
    """Means (R, C), NaN where there is none; why there is none; how many cells each is of."""

    title: str
    means: NDArray[np.float64]
    measured: NDArray[np.bool_]
    counts: NDArray[np.int64]


def heat(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    row_axis: str,
    column_axis: str,
    benchmark: str = "val",
    metric: str = "top1",
) -> Figure | None:
    """The mean over seeds at each pair of levels of two axes, with the number in it; None if there
    is none.

    `frame` is that of `collect`, `cells` is `cells_frame`. Where other axes vary too, up to
    `MOST_PANELS` of their settings have a panel each, on one scale of colours; of more the mean of
    the cells' means is shown, and a * where a place lacks some of the cells that others have.
    Hatched: no cell, or none with results; nan: a seed's value is no number. A cell to which one of
    the two axes does not apply stands in the note. Numbers sort by size, words as in the plan.

    Errors: `UserError` for an axis that the sweep does not have.
    """
    axes = [name for name in cells.columns if name not in ("cell", "label")]
    for name in (row_axis, column_axis):
        if name not in axes:
            raise UserError(f"{name}: not an axis of the sweep; {nearest(name, axes)}")
    chosen = frame[(frame["benchmark"] == benchmark) & (frame["metric"] == metric)]
    if chosen.empty:
        return None
    means = seed_means(chosen)
    placed = cells.assign(mean=cells["cell"].map(means), measured=cells["cell"].isin(means.index))
    outside = placed[[row_axis, column_axis]].isna().any(axis=1)
    placed, without = placed[~outside], placed[outside & placed["measured"]]
    if not placed["measured"].any():
        return None
    rows, columns = (levels(placed[name]) for name in (row_axis, column_axis))
    others = [name for name in axes if name not in (row_axis, column_axis)]
    grids, averaged = _grids(placed, (row_axis, column_axis), (rows, columns), others)
    texts = _notes(grids, others, averaged) + _outside(without, metric)
    with styled():
        return _draw(grids, (row_axis, column_axis), (rows, columns), (benchmark, metric), texts)


def levels(values: pd.Series) -> list[str]:
    """The levels of an axis as they are written: numbers by size, words as they come."""
    found: dict[str, Any] = {value_word(value): value for value in values}
    if all(isinstance(v, int | float | np.number) for v in found.values()):
        found = dict(sorted(found.items(), key=lambda item: item[1]))
    return list(found)


def _grids(
    placed: pd.DataFrame, axes: tuple[str, str], sides: tuple[list[str], list[str]],
    others: list[str],
) -> tuple[list[_Grid], bool]:  # fmt: skip
    """A grid a setting of the other axes, or one of their means, and whether it is that."""
    settings = [
        " · ".join(f"{name} {value_word(row[name])}" for name in others)
        for row in placed.to_dict("records")
    ]
    each = dict.fromkeys(settings)
    if len(each) > MOST_PANELS:
        return [_grid("", placed, axes, sides)], True
    asked = pd.Series(settings, index=placed.index)
    grids = [_grid(name, placed[asked == name], axes, sides) for name in each]
    return [grid for grid in grids if grid.measured.any()], False


def _grid(
    title: str, placed: pd.DataFrame, axes: tuple[str, str], sides: tuple[list[str], list[str]]
) -> _Grid:
    shape = len(sides[0]), len(sides[1])
    sums, counts = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    for row in placed[placed["measured"]].to_dict("records"):
        place = tuple(
            side.index(value_word(row[axis])) for side, axis in zip(sides, axes, strict=True)
        )
        sums[place] += row["mean"]
        counts[place] += 1
    means = np.divide(sums, counts, out=np.full(shape, math.nan), where=counts > 0)
    return _Grid(title, means, counts > 0, counts)


def _draw(
    grids: list[_Grid], axes: tuple[str, str], sides: tuple[list[str], list[str]],
    what: tuple[str, str], texts: list[str],
) -> Figure:  # fmt: skip
    rows, columns = ([wrapped(word, 18) for word in side] for side in sides)
    finite = np.concatenate([grid.means[np.isfinite(grid.means)] for grid in grids] or [[]])
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    middle, half = (low + high) / 2, max((high - low) / 2, 10.0 ** -decimals(what[1]))
    norm = Normalize(middle - half, middle + half)
    widths = LETTER * max(len(line) for word in rows for line in word.split("\n"))
    width = max(COLUMN, widths + 0.55 + 0.27 * len(columns))
    across = (width - widths - 0.55) / len(columns)
    letters = max(len(line) for word in columns for line in word.split("\n"))
    upright = letters * LETTER > 0.95 * across
    below = letters * LETTER + 0.1 if upright else LINE * lines_in(columns) + 0.05
    each = max(_SQUARE, LINE * lines_in(rows)) * len(rows) + 0.2
    height = each * len(grids) + below + note_height(texts, width) + 0.75
    figure = new_figure(width, height)
    panels = figure.subplots(len(grids), 1, sharex=True, squeeze=False)
    for panel, grid in zip(panels.flat, grids, strict=True):
        _draw_grid(panel, grid, norm, what[1], size=SMALL if across < 0.4 else 6.5)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_xticks(range(len(columns)), columns, rotation=90 if upright else 0)
        panel.set_title(wrapped(grid.title, 60), loc="left", pad=2, fontsize=6.5)
        panel.set_ylabel(wrapped(axes[0], 22))
    panels[-1, 0].set_xlabel(wrapped(axes[1], 50))
    title = wrapped(f"{metric_title(what[1])} on {what[0]}", 58)
    figure.suptitle(title, fontsize=7, x=0.01, ha="left")
    note(figure, texts, width)
    return figure


def _draw_grid(axes: Axes, grid: _Grid, norm: Normalize, metric: str, size: float) -> None:
    # The reversed map, so that light is good where low numbers are.
    colours = mpl.colormaps[_COLOURS + ("_r" if metric in LOWER_IS_BETTER else "")]
    axes.imshow(
        np.ma.masked_invalid(grid.means), cmap=colours, norm=norm, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    most = grid.counts.max()
    for (i, j), mean in np.ndenumerate(grid.means):
        if not math.isfinite(mean):
            axes.add_patch(
                Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor="white", edgecolor=FAINT,
                          hatch="" if grid.measured[i, j] else "/////", linewidth=0)
            )  # fmt: skip
        if grid.measured[i, j]:
            text = f"{mean:.{decimals(metric)}f}" + ("*" if grid.counts[i, j] < most else "")
            color = text_color(colours(norm(mean))[:3]) if math.isfinite(mean) else INK
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    for i in range(1, grid.means.shape[0]):
        axes.axhline(i - 0.5, color="white", linewidth=0.8)
    for j in range(1, grid.means.shape[1]):
        axes.axvline(j - 0.5, color="white", linewidth=0.8)


def text_color(background: tuple[float, float, float]) -> str:
    """Black or white, whichever has more contrast to a colour (WCAG 2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


def _notes(grids: list[_Grid], others: list[str], averaged: bool) -> list[str]:
    texts = ["Mean over seeds."]
    if averaged:
        texts = [f"Mean over seeds and over {', '.join(others)}."]
        counts = grids[0].counts
        if (counts[counts > 0] < counts.max()).any():
            texts.append(f"*: of fewer than {counts.max()} cells.")
    if not all(grid.measured.all() for grid in grids):
        texts.append("Hatched: no results.")
    return texts


def _outside(without: pd.DataFrame, metric: str) -> list[str]:
    """A sentence with the cells that have no place in the grid."""
    shown = [
        f"{row['label']} {row['mean']:.{decimals(metric)}f}"
        for row in without.head(MOST_OUTSIDE).to_dict("records")
    ]
    more = len(without) - len(shown)
    shown += [f"and {more} more"] if more else []
    return [f"Not in the grid: {', '.join(shown)}."] if shown else []
