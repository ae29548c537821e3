"""Accuracy over two axes of a sweep, as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from densevit.results.figures.legend import note, note_height
from densevit.results.figures.style import (
    COLUMN,
    FAINT,
    INK,
    LETTER,
    LINE,
    SMALL,
    lines_in,
    new_figure,
    seed_means,
    styled,
    wrapped,
)
from densevit.results.stats.ranking import image_metric, image_rows
from densevit.results.tables.format import metric_title
from densevit.sweep.cells import value_text
from densevit.utils.errors import UserError, nearest

MOST_PANELS = 4  # settings of the other axes that have a panel each; more are averaged
MOST_OUTSIDE = 3  # cells without a place in the grid that the note names
_COLORS = mpl.colormaps["viridis"]  # even in lightness, for the color-blind and gray print
_SQUARE = 0.2  # inches, the height of a row


class _Axis(NamedTuple):
    """An axis of the sweep: its name and the texts of its levels."""

    name: str
    levels: list[str]


class _Grid(NamedTuple):
    """Means (R, C), NaN if none; which places have results; the number of cells in each mean."""

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
) -> Figure | None:
    """Draw the mean top-1 over seeds at each pair of levels of two axes, with the number in it.

    Return None without results. `frame` is that of `collect`, `cells` is `cells_frame`. If other
    axes vary too, up to `MOST_PANELS` of their settings have a panel each, on one color scale; of
    more, the mean of the cells' means is shown, with a * where a place lacks cells that others
    have. Hatched: no cell, or none with results; nan: a seed's value is not finite. The note lists
    cells to which one of the two axes does not apply. Numbers are sorted by size; words keep the
    order of the plan.

    Errors: `UserError` for an axis that the sweep does not have.
    """
    names = [name for name in cells.columns if name not in ("cell", "label")]
    for name in (row_axis, column_axis):
        if name not in names:
            raise UserError(f"{name}: not an axis of the sweep; {nearest(name, names)}")
    values = image_rows(frame[frame["benchmark"] == benchmark])
    means = seed_means(values)
    placed = cells.assign(mean=cells["cell"].map(means), measured=cells["cell"].isin(means.index))
    outside = placed[[row_axis, column_axis]].isna().any(axis=1)
    placed, without = placed[~outside], placed[outside & placed["measured"]]
    if not placed["measured"].any():
        return None
    rows, columns = (_Axis(name, levels(placed[name])) for name in (row_axis, column_axis))
    others = [name for name in names if name not in (row_axis, column_axis)]
    grids, averaged = _grids(placed, rows, columns, others)
    texts = _notes(grids, others, averaged) + _outside(without)
    with styled():
        title = f"{metric_title(image_metric(values))} on {benchmark}"
        return _draw(grids, rows, columns, title, texts)


def levels(values: pd.Series) -> list[str]:
    """Return the levels of an axis as text: numbers by size, words in order of appearance."""
    found: dict[str, Any] = {value_text(value): value for value in values}
    if all(isinstance(v, int | float | np.number) for v in found.values()):
        found = dict(sorted(found.items(), key=lambda item: item[1]))
    return list(found)


def _grids(
    placed: pd.DataFrame, rows: _Axis, columns: _Axis, others: list[str]
) -> tuple[list[_Grid], bool]:
    """Return a grid per setting of the other axes and False, or one of their means and True."""
    settings = pd.Series(
        [
            " · ".join(f"{name} {value_text(row[name])}" for name in others)
            for row in placed.to_dict("records")
        ],
        index=placed.index,
    )
    names = dict.fromkeys(settings)
    if len(names) > MOST_PANELS:
        return [_grid("", placed, rows, columns)], True
    grids = [_grid(name, placed[settings == name], rows, columns) for name in names]
    return [grid for grid in grids if grid.measured.any()], False


def _grid(title: str, placed: pd.DataFrame, rows: _Axis, columns: _Axis) -> _Grid:
    shape = len(rows.levels), len(columns.levels)
    sums, counts = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    for cell in placed[placed["measured"]].to_dict("records"):
        i = rows.levels.index(value_text(cell[rows.name]))
        j = columns.levels.index(value_text(cell[columns.name]))
        sums[i, j] += cell["mean"]
        counts[i, j] += 1
    means = np.divide(sums, counts, out=np.full(shape, math.nan), where=counts > 0)
    return _Grid(title, means, counts > 0, counts)


def _draw(grids: list[_Grid], rows: _Axis, columns: _Axis, title: str, texts: list[str]) -> Figure:
    row_labels, column_labels = (
        [wrapped(text, 18) for text in axis.levels] for axis in (rows, columns)
    )
    finite = np.concatenate([grid.means[np.isfinite(grid.means)] for grid in grids])
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    middle, half = (low + high) / 2, max((high - low) / 2, 0.1)
    norm = Normalize(middle - half, middle + half)
    labels_width = _width(row_labels)
    width = max(COLUMN, labels_width + 0.55 + 0.27 * len(column_labels))
    across = (width - labels_width - 0.55) / len(column_labels)
    upright = _width(column_labels) > 0.95 * across
    below = _width(column_labels) + 0.1 if upright else LINE * lines_in(column_labels) + 0.05
    each = max(_SQUARE, LINE * lines_in(row_labels)) * len(row_labels) + 0.2
    height = each * len(grids) + below + note_height(texts, width) + 0.75
    figure = new_figure(width, height)
    panels = figure.subplots(len(grids), 1, sharex=True, squeeze=False)
    for panel, grid in zip(panels.flat, grids, strict=True):
        _draw_grid(panel, grid, norm, size=SMALL if across < 0.4 else 6.5)
        panel.set_yticks(range(len(row_labels)), row_labels)
        panel.set_xticks(range(len(column_labels)), column_labels, rotation=90 if upright else 0)
        panel.set_title(wrapped(grid.title, 60), loc="left", pad=2, fontsize=6.5)
        panel.set_ylabel(wrapped(rows.name, 22))
    panels[-1, 0].set_xlabel(wrapped(columns.name, 50))
    figure.suptitle(wrapped(title, 58), fontsize=7, x=0.01, ha="left")
    note(figure, texts, width)
    return figure


def _width(labels: list[str]) -> float:
    """Return the width of the longest line in inches."""
    return LETTER * max(len(line) for label in labels for line in label.split("\n"))


def _draw_grid(axes: Axes, grid: _Grid, norm: Normalize, size: float) -> None:
    axes.imshow(
        np.ma.masked_invalid(grid.means), cmap=_COLORS, norm=norm, aspect="auto",
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
            text = f"{mean:.1f}" + ("*" if grid.counts[i, j] < most else "")
            color = text_color(_COLORS(norm(mean))) if math.isfinite(mean) else INK
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    for i in range(1, grid.means.shape[0]):
        axes.axhline(i - 0.5, color="white", linewidth=0.8)
    for j in range(1, grid.means.shape[1]):
        axes.axvline(j - 0.5, color="white", linewidth=0.8)


def text_color(background: Sequence[float]) -> str:
    """Return black or white, whichever contrasts more with a color (WCAG 2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3]]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"


def _notes(grids: list[_Grid], others: list[str], averaged: bool) -> list[str]:
    texts = ["Mean over seeds."]
    if averaged:
        texts = [f"Mean over seeds and over {', '.join(others)}."]
        counts = grids[0].counts
        if (counts[counts > 0] < counts.max()).any():
            texts.append(f"*: mean of fewer than {counts.max()} cells.")
    if not all(grid.measured.all() for grid in grids):
        texts.append("Hatched: no results.")
    return texts


def _outside(without: pd.DataFrame) -> list[str]:
    """Return a sentence with the cells that have no place in the grid."""
    shown = [
        f"{row['label']} {row['mean']:.1f}" for row in without.head(MOST_OUTSIDE).to_dict("records")
    ]
    more = len(without) - len(shown)
    shown += [f"and {more} more"] if more else []
    return [f"Not in the grid: {', '.join(shown)}."] if shown else []
