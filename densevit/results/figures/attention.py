"""Figures of attention maps and patch similarity."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from densevit.results.figures.correspondence import COLORS, color_scale, save_figure
from densevit.results.figures.style import COLUMN, INK, literal, new_figure, styled

# Maximum number of maps side by side; inches around the maps of a row; inches below all maps.
_ACROSS, _AROUND, _UNDER = 5, 0.32, 0.3


def draw_similarity(
    image: NDArray[np.uint8], similarity: NDArray[np.float32], patch: int, png: Path
) -> None:
    """Write a PNG of an image (S, S, 3) with one patch framed, and each patch's similarity to it.

    `similarity`: (rows, columns), from `densevit.evaluate.correspondence.patch_similarity`.
    """
    rows, columns = similarity.shape
    with styled():
        figure = new_figure(COLUMN, 1.75)
        left, right = figure.subplots(1, 2)
        left.imshow(image, extent=(0, columns, rows, 0), interpolation="nearest")
        shown = right.imshow(similarity, COLORS, color_scale(similarity), interpolation="nearest")
        shown.set_extent((0, columns, rows, 0))
        row, column = divmod(patch, columns)
        for axes in (left, right):
            axes.set_axis_off()
            for color, width in (("white", 2.2), (INK, 0.9)):
                frame = Rectangle((column, row), 1, 1, fill=False, edgecolor=color, lw=width)
                axes.add_patch(frame).set_clip_on(False)
        figure.colorbar(shown, ax=right, label="cosine similarity", shrink=0.9)
        save_figure(figure, png)


def draw_attention(
    image: NDArray[np.uint8], weights: NDArray[np.float32], png: Path, *, title: str
) -> None:
    """Write a PNG of an image (S, S, 3), the attention map of each head, and their mean.

    `weights`: (heads, rows, columns), from `densevit.evaluate.attention.attention`; `title` states
    whose attention it is. Each map has its own scale, whose maximum stands below it: heads differ
    too much.
    """
    with styled():
        save_figure(_attention(image, weights, title), png)


def _attention(image: NDArray[np.uint8], weights: NDArray[np.float32], title: str) -> Figure:
    weights = np.nan_to_num(weights)  # NaN if the network diverged
    maps = {"mean": weights.mean(axis=0)}
    maps |= {f"head {number}": head for number, head in enumerate(weights)}
    rows = math.ceil((len(maps) + 1) / _ACROSS)
    across = math.ceil((len(maps) + 1) / rows)
    figure = new_figure(COLUMN, rows * (COLUMN / across + _AROUND) + _UNDER)
    places = figure.subplots(rows, across, squeeze=False).flat
    for axes in places:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    places[0].imshow(image, interpolation="nearest")
    places[0].set_title("image", pad=2)
    for axes, (name, shown) in zip(places[1:], maps.items(), strict=False):
        top = float(shown.max())
        axes.imshow(shown, COLORS, vmin=0, vmax=top or 1, interpolation="nearest")
        axes.set_title(name, pad=2)
        axes.set_xlabel(f"{100 * top:.1f} %", labelpad=2)
    figure.supxlabel(f"{literal(title)}\nfrom 0 (dark) to the share below each (light)", fontsize=7)
    return figure
