"""Figures of correspondences: two views with lines between the patches that a network matched.

As figure 4 of Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training"
(2021), but wrong matches are drawn too, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.typing import ColorType, LineStyleType
from numpy.typing import NDArray

from densevit.evaluate.correspondence_file import Correspondences
from densevit.results.figures.style import (
    COLUMN,
    FAINT,
    LINE,
    SMALL,
    lines_in,
    literal,
    new_figure,
    save,
    styled,
)
from densevit.utils.files import replacing

Found = Correspondences | Sequence[Correspondences]

COLORS = "viridis"  # even in lightness, for the color-blind and gray print
MOST_BEFORE_AFTER = 16  # matches in an image
_GAP = 0.12  # between the views, in view widths
_DROP = 0.3  # of view 2 below view 1, likewise; at one height, lines of a row would overlap
_EDGE, _HEAD, _FOOT = 0.2, 0.22, 0.68  # inches beside a pair, above the first, below the last
# Style of a match: line width and dashes, marker of the ends and its size.
_KINDS: dict[str, tuple[float, LineStyleType, str, float]] = {
    "right": (1.3, "-", "o", 3.2),
    "wrong": (0.7, (0, (4, 2)), "X", 3.2),
    "none": (0.6, ":", "s", 1.8),
}


class _Size(NamedTuple):
    """Sizes in a pair: font in points, text in more lines if `narrow`, scale of line widths."""

    font: float
    narrow: bool
    thick: float


_SIZES = (_Size(7.0, False, 1.0), _Size(SMALL, True, 0.7))  # alone, and two side by side
_LEGEND = ("right, ± 1 patch", "wrong", "place not in view 2")


def draw_matches(found: Found, png: Path, *, most: int = 24) -> None:
    """Write a PNG (300 dpi, a column wide) with a row per image and at most `most` matches in each.

    `select_patches` selects the matches. Right ones are solid; wrong ones are dashed and thinner;
    those of patches whose place view 2 does not show are dotted and gray. The counts stand below.
    """
    save_figure(matches([("", found)], most), png)


def draw_before_after(before: Found, after: Found, png: Path, pdf: Path) -> None:
    """Write a PNG and a PDF of the same images before (left) and after training (right).

    The figure is a column wide. Errors: `ValueError` if the numbers of images differ.
    """
    sides = [("before training", before), ("after training", after)]
    save(matches(sides, MOST_BEFORE_AFTER), png, pdf)


def select_patches(found: Correspondences, most: int) -> NDArray[np.int64]:
    """Return the patches of view 1 whose match is drawn, in order: at most `most` of them.

    If view 1 has more patches, it is divided into `most` or slightly fewer regions of nearly equal
    sides. In each region the patch with the most similar match is drawn, the first of equals. So
    the matches spread over the view, and their correctness plays no part.

    Errors: `ValueError` if `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    rows, columns = found.grid
    patches = np.arange(rows * columns)
    if len(patches) <= most:
        return patches
    down = min(rows, most, max(1, math.isqrt(most * rows // columns)))
    across = min(columns, most // down)
    region = patches // columns * down // rows * across + patches % columns * across // columns
    regions = [patches[region == number] for number in range(down * across)]
    return np.sort([inside[found.similarity[inside].argmax()] for inside in regions])


def count_text(found: Correspondences, drawn: NDArray[np.int64]) -> str:
    """Return the counts of the drawn matches, and the precision of all if some are not drawn."""
    exists, right = found.truth >= 0, int(found.right[drawn].sum())
    none = int((~exists[drawn]).sum())
    wrong = len(drawn) - right - none
    text = f"{right} of {len(drawn)} right, {wrong} wrong, {none} without a true match"
    if len(drawn) == len(exists) or not exists.any():
        return text
    return f"{text}\nof all {exists.sum()} with a true match, {100 * found.precision:.0f} % right"


def matches(sides: Sequence[tuple[str, Found]], most: int) -> Figure:
    """Draw a column-wide figure: a column per (title, images), a row per image, one color scale.

    Errors: `ValueError` if the numbers of images differ or are zero.
    """
    columns = [[f] if isinstance(f, Correspondences) else list(f) for _, f in sides]
    rows = len(columns[0])
    if rows == 0 or any(len(column) != rows for column in columns):
        counts = [len(column) for column in columns]
        raise ValueError(f"each side must have the same number of images, at least 1; got {counts}")
    with styled():
        values = [one.similarity[select_patches(one, most)] for column in columns for one in column]
        colors = ScalarMappable(color_scale(np.concatenate(values)), COLORS)
        each = COLUMN / len(sides)
        size = _SIZES[min(len(sides), 2) - 1]
        wide, tall = each - 2 * _EDGE, (each - 2 * _EDGE) * (1 + _DROP) / (2 + _GAP)
        texts = [_text_below(one, most, size) for column in columns for one in column]
        below = 0.12 + LINE * lines_in(texts)
        figure = new_figure(COLUMN, _HEAD + rows * (tall + below) + _FOOT)
        # Placed manually: matplotlib's layout cuts off titles above axes of a fixed aspect.
        figure.set_layout_engine("none")
        for i, (title, _) in enumerate(sides):
            for j in range(rows):
                bottom = _FOOT + (rows - 1 - j) * (tall + below) + below
                axes = _axes_at(figure, each * i + _EDGE, bottom, wide, tall)
                _draw_pair(axes, columns[i][j], most, colors, size)
                if j == 0:
                    axes.set_title(literal(title), fontweight="bold", y=1.0, pad=4)
        bar = _axes_at(figure, COLUMN / 2 - 1, 0.54, 2, 0.08)
        figure.colorbar(colors, cax=bar, orientation="horizontal", label="cosine similarity")
        bar.tick_params(length=2)
        handles = [_lines(kind, FAINT) for kind in _KINDS]
        figure.legend(  # type: ignore[call-overload]  # the stubs lack tuples, drawn as one handle
            handles, _LEGEND, loc="lower center", ncols=3, frameon=False
        )
        return figure


def _axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _text_below(found: Correspondences, most: int, size: _Size) -> str:
    text = count_text(found, select_patches(found, most))
    if not size.narrow:
        return text
    return "\n".join(",\n".join(line.rsplit(", ", 1)) for line in text.split("\n"))


def _draw_pair(
    axes: Axes, found: Correspondences, most: int, colors: ScalarMappable, size: _Size
) -> None:
    drawn = select_patches(found, most)
    (rows, columns), truth, similarity = found.grid, found.truth, found.similarity
    corners = ((0, 0), (1 + _GAP, _DROP))
    for number, (pixels, (x, y)) in enumerate(zip(found.views.pixels, corners, strict=True), 1):
        axes.imshow(pixels, extent=(x, x + 1, y + 1, y), interpolation="nearest")
        # At the outer edges, where no line passes.
        edge, side = (x - 0.02, "right") if number == 1 else (x + 1.02, "left")
        axes.text(
            edge, y + 0.5, f"view {number}", rotation=90, ha=side, va="center", fontsize=size.font
        )
    axes.set(xlim=(0, 2 + _GAP), ylim=(1 + _DROP, 0), xticks=[], yticks=[])
    axes.set_xlabel(_text_below(found, most, size), fontsize=size.font)
    axes.spines[:].set_visible(False)
    # Right matches are drawn last, on top; within a kind, the most similar one is.
    for patch in sorted(drawn, key=lambda i: (truth[i] >= 0, found.right[i], similarity[i])):
        ends = [
            (x + (i % columns + 0.5) / columns, y + (i // columns + 0.5) / rows)
            for (x, y), i in zip(corners, (patch, found.partner[patch]), strict=True)
        ]
        kind = "none" if truth[patch] < 0 else "right" if found.right[patch] else "wrong"
        red, green, blue, alpha = colors.to_rgba(similarity[patch])
        color: ColorType = FAINT if kind == "none" else (red, green, blue, alpha)
        for line in _lines(kind, color, *zip(*ends, strict=True), thick=size.thick):
            axes.add_line(line)


def _lines(
    kind: str,
    color: ColorType,
    x: Sequence[float] = (),
    y: Sequence[float] = (),
    *,
    thick: float = 1,
) -> tuple[Line2D, Line2D]:
    """Return a line and its two ends."""
    width, style, marker, size = _KINDS[kind]
    width, size = width * thick, size * thick
    line = Line2D(x, y, color=color, linestyle=style, linewidth=width)
    # A rim sets it off from light and dark images.
    rim = "white" if kind == "none" else "black"
    line.set_path_effects([Stroke(linewidth=width + 0.7 * thick, foreground=rim), Normal()])
    ends = Line2D(x, y, color=color, linestyle="", marker=marker, markersize=size)
    ends.set(markeredgecolor=rim, markeredgewidth=0.35)
    return line, ends


def color_scale(values: NDArray[np.float32]) -> Normalize:
    """Return a scale from the lowest to the highest similarity, extended to whole tenths."""
    values = np.nan_to_num(values)  # NaN if the network diverged
    low = math.floor(round(10 * float(values.min()), 3)) / 10
    high = math.ceil(round(10 * float(values.max()), 3)) / 10
    return Normalize(min(low, high - 0.1), high, clip=True)


def save_figure(figure: Figure, png: Path) -> None:
    with styled(), replacing(png) as temporary:
        figure.savefig(temporary, format="png")
