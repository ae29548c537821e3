"""Pictures of correspondences: two views with lines between the patches that a network matched.

As figure 4 of Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training"
(2021), with one difference: wrong matches are drawn too, and counted. And, of one picture, what is
similar to a patch and what the network attends to.
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
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from densevit.matchfile import Correspondences
from densevit.results.figures.style import (
    COLUMN,
    FAINT,
    INK,
    LINE,
    SMALL,
    lines_in,
    new_figure,
    save,
    styled,
)
from densevit.rundir import replacing

Found = Correspondences | Sequence[Correspondences]

_COLOURS = "viridis"  # grows lighter evenly, for the colour-blind and in grey print too
_GAP = 0.12  # between the views, in sides of a view
_DROP = 0.3  # of view 2 below view 1, likewise: level, the lines of a row would hide each other
_EDGE, _HEAD, _FOOT = 0.2, 0.22, 0.68  # inches beside a pair, above the first, below the last
# Maps of attention side by side, at most; inches around the maps of a row, and below them all.
_ACROSS, _AROUND, _UNDER = 5, 0.32, 0.3
# How a match is drawn: width and dashes of the line, the ends and their size.
_KINDS = {
    "right": (1.3, "-", "o", 3.2),
    "wrong": (0.7, (0, (4, 2)), "X", 3.2),
    "none": (0.6, ":", "s", 1.8),
}


class _Size(NamedTuple):
    """Of a pair: the points of its words, whether these are broken, the thickness of its lines."""

    font: float
    narrow: bool
    thick: float


_SIZES = (_Size(7.0, False, 1.0), _Size(SMALL, True, 0.7))  # alone, and two side by side
_WORDS = ("right, ± 1 patch", "wrong", "place not in view 2")


def draw_matches(found: Found, png: Path, *, most: int = 24, title: str = "") -> None:
    """Write a PNG (300 dpi, a column wide) with a row a picture, each of `most` matches at most.

    Which ones are drawn is said at `chosen`. Right ones are solid, wrong ones dashed and thinner,
    those of patches whose place view 2 does not show dotted and grey; the counts stand below.
    """
    _save(matches([(title, found)], most), png)


def draw_before_after(before: Found, after: Found, png: Path, pdf: Path, *, most: int = 16) -> None:
    """The same pictures before (left) and after training (right), in a column's width, as PNG and
    PDF.

    Errors: `ValueError` if the two do not hold as many pictures.
    """
    save(matches([("before training", before), ("after training", after)], most), png, pdf)


def draw_similarity(
    picture: NDArray[np.uint8], similarity: NDArray[np.float32], patch: int, png: Path
) -> None:
    """Write a PNG of a picture (S, S, 3) with a patch framed, and of how similar to it each is.

    `similarity`: (rows, columns), as `densevit.correspond.patch_similarity` gives it.
    """
    rows, columns = similarity.shape
    with styled():
        figure = new_figure(COLUMN, 1.75)
        left, right = figure.subplots(1, 2)
        left.imshow(picture, extent=(0, columns, rows, 0), interpolation="nearest")
        shown = right.imshow(similarity, _COLOURS, _scale(similarity), interpolation="nearest")
        shown.set_extent((0, columns, rows, 0))
        row, column = divmod(patch, columns)
        for axes in (left, right):
            axes.set_axis_off()
            for colour, width in (("white", 2.2), (INK, 0.9)):
                frame = Rectangle((column, row), 1, 1, fill=False, edgecolor=colour, lw=width)
                axes.add_patch(frame).set_clip_on(False)
        figure.colorbar(shown, ax=right, label="cosine similarity", shrink=0.9)
        _save(figure, png)


def draw_attention(
    picture: NDArray[np.uint8], weights: NDArray[np.float32], png: Path, *, words: str
) -> None:
    """Write a PNG of a picture (S, S, 3), and of what each head attends to and all on average.

    `weights`: (heads, rows, columns), as `densevit.correspond.attention` gives them; `words`: whose
    they are. Each map has a scale of its own, whose end stands below it: heads differ too much.
    """
    with styled():
        _save(_attention(picture, weights, words), png)


def chosen(found: Correspondences, most: int) -> NDArray[np.int64]:
    """The patches of view 1 whose match is drawn, in their order: at most `most` of them.

    All where there are no more. Else view 1 is cut into that many regions of nearly equal sides, or
    a few less, and of each the patch is drawn whose match is most similar, the first of equals.
    So they are spread over the view, and whether a match is right plays no part.

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


def count_words(found: Correspondences, drawn: NDArray[np.int64]) -> str:
    """How many of the drawn matches are right, wrong or neither; the precision, if some are not."""
    exists, right = found.truth >= 0, int(found.right[drawn].sum())
    none = int((~exists[drawn]).sum())
    wrong = len(drawn) - right - none
    words = f"{right} of {len(drawn)} right, {wrong} wrong, {none} without a true match"
    if len(drawn) == len(exists) or not exists.any():
        return words
    return f"{words}\nof all {exists.sum()} with a true match, {100 * found.precision:.0f} % right"


def matches(sides: Sequence[tuple[str, Found]], most: int) -> Figure:
    """A figure as wide as a column, in it a column for each (title, pictures), a row a picture, and
    one colour scale.

    Errors: `ValueError` if they are not equally long, or empty.
    """
    columns = [[f] if isinstance(f, Correspondences) else list(f) for _, f in sides]
    rows = len(columns[0])
    if rows == 0 or any(len(column) != rows for column in columns):
        raise ValueError(f"wanted as many pictures in each, got {[len(c) for c in columns]}")
    with styled():
        values = [one.similarity[chosen(one, most)] for column in columns for one in column]
        colours = ScalarMappable(_scale(np.concatenate(values)), _COLOURS)
        each = COLUMN / len(sides)
        size = _SIZES[min(len(sides), 2) - 1]
        wide, tall = each - 2 * _EDGE, (each - 2 * _EDGE) * (1 + _DROP) / (2 + _GAP)
        words = [_words_below(one, most, size) for column in columns for one in column]
        below = 0.12 + LINE * lines_in(words)
        figure = new_figure(COLUMN, _HEAD + rows * (tall + below) + _FOOT)
        # Laid out by hand: matplotlib's own layout cuts titles off above axes of a fixed aspect.
        figure.set_layout_engine("none")
        inches = tuple(figure.get_size_inches()) * 2
        for i, (title, _) in enumerate(sides):
            for j in range(rows):
                bottom = _FOOT + (rows - 1 - j) * (tall + below) + below
                axes = figure.add_axes(np.divide((each * i + _EDGE, bottom, wide, tall), inches))
                _draw_pair(axes, columns[i][j], most, colours, size)
                if j == 0:
                    axes.set_title(title.replace("$", r"\$"), fontweight="bold", y=1.0, pad=4)
        bar = figure.add_axes(np.divide((COLUMN / 2 - 1, 0.54, 2, 0.08), inches))
        figure.colorbar(colours, cax=bar, orientation="horizontal", label="cosine similarity")
        bar.tick_params(length=2)
        handles = [_lines(kind, FAINT) for kind in _KINDS]
        figure.legend(handles, _WORDS, loc="lower center", ncols=3, frameon=False)
        return figure


def _attention(picture: NDArray[np.uint8], weights: NDArray[np.float32], words: str) -> Figure:
    weights = np.nan_to_num(weights)  # of a network that diverged
    maps = {"mean": weights.mean(axis=0)}
    maps |= {f"head {number}": head for number, head in enumerate(weights)}
    rows = math.ceil((len(maps) + 1) / _ACROSS)
    across = math.ceil((len(maps) + 1) / rows)
    figure = new_figure(COLUMN, rows * (COLUMN / across + _AROUND) + _UNDER)
    places = figure.subplots(rows, across, squeeze=False).flat
    for axes in places:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    places[0].imshow(picture, interpolation="nearest")
    places[0].set_title("picture", pad=2)
    for axes, (title, shown) in zip(places[1:], maps.items(), strict=False):
        top = float(shown.max())
        axes.imshow(shown, _COLOURS, vmin=0, vmax=top or 1, interpolation="nearest")
        axes.set_title(title, pad=2)
        axes.set_xlabel(f"{100 * top:.1f} %", labelpad=2)
    figure.supxlabel(f"{words}\nfrom 0 (dark) to the share below each (light)", fontsize=7)
    return figure


def _words_below(found: Correspondences, most: int, size: _Size) -> str:
    words = count_words(found, chosen(found, most))
    if not size.narrow:
        return words
    return "\n".join(",\n".join(line.rsplit(", ", 1)) for line in words.split("\n"))


def _draw_pair(
    axes: Axes, found: Correspondences, most: int, colours: ScalarMappable, size: _Size
) -> None:
    drawn = chosen(found, most)
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
    axes.set_xlabel(_words_below(found, most, size), fontsize=size.font)
    axes.spines[:].set_visible(False)
    # The right ones come last, on top; within a kind the most similar one does.
    for patch in sorted(drawn, key=lambda i: (truth[i] >= 0, found.right[i], similarity[i])):
        ends = [
            (x + (i % columns + 0.5) / columns, y + (i // columns + 0.5) / rows)
            for (x, y), i in zip(corners, (patch, found.partner[patch]), strict=True)
        ]
        kind = "none" if truth[patch] < 0 else "right" if found.right[patch] else "wrong"
        colour = FAINT if kind == "none" else colours.to_rgba(similarity[patch])
        for line in _lines(kind, colour, *zip(*ends, strict=True), thick=size.thick):
            axes.add_line(line)


def _lines(
    kind: str, colour: object, x: Sequence[float] = (), y: Sequence[float] = (), *, thick: float = 1
) -> tuple[Line2D, Line2D]:
    """A line and its two ends."""
    width, style, marker, size = _KINDS[kind]
    width, size = width * thick, size * thick
    line = Line2D(x, y, color=colour, linestyle=style, linewidth=width)
    # A rim sets it off from light and dark pictures.
    rim = "white" if kind == "none" else "black"
    line.set_path_effects([Stroke(linewidth=width + 0.7 * thick, foreground=rim), Normal()])
    ends = Line2D(x, y, color=colour, linestyle="", marker=marker, markersize=size)
    ends.set(markeredgecolor=rim, markeredgewidth=0.35)
    return line, ends


def _scale(values: NDArray[np.float32]) -> Normalize:
    """From the lowest to the highest similarity, in whole tenths."""
    values = np.nan_to_num(values)  # of a network that diverged
    low = math.floor(round(10 * float(values.min()), 3)) / 10
    high = math.ceil(round(10 * float(values.max()), 3)) / 10
    return Normalize(min(low, high - 0.1), high, clip=True)


def _save(figure: Figure, png: Path) -> None:
    with styled(), replacing(png) as temporary:
        figure.savefig(temporary, format="png")
