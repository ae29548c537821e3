"""One style for all figures: readable in a paper's column, by the color-blind and in gray print.

The user's matplotlib stays as it is: no pyplot, no backend, settings only while drawing. Color is
never the only difference: a thing with its own color has its own marker and dashes too.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.typing import LineStyleType

from densevit.utils.escape import visible
from densevit.utils.files import replacing

# Okabe and Ito, "Color Universal Design" (2008), without black and the yellow, faint on paper.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[LineStyleType, ...] = (
    "-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (2.5, 1)), (0, (8, 2)),
)  # fmt: skip
INK, FAINT, REST = "#222222", "#777777", "#b4b4b4"
COLUMN = 3.5  # inches, a column of a two-column paper
ROW = 0.16  # inches, a row of dots
LINE = 0.115  # inches, a line of small letters
SMALL = 6.0  # points, the smallest letters
LETTER = 0.052  # inches, approximate width of a small letter
MOST_STYLES = len(PALETTE)
# The first comes with matplotlib; the installed ones of the others add the letters it lacks.
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei",
         "Noto Sans", "Noto Sans Symbols2", "Noto Emoji")  # fmt: skip

_STYLE = {
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.4,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "pdf.fonttype": 42,  # TrueType letters, which publishers accept
    "savefig.dpi": 300,
}


class Style(NamedTuple):
    """The appearance that distinguishes one thing among a few."""

    color: str
    marker: str
    dashes: LineStyleType


STYLES = tuple(Style(*parts) for parts in zip(PALETTE, MARKERS, DASHES, strict=True))


@contextmanager
def styled() -> Iterator[None]:
    """Apply matplotlib's defaults with ours over them; restore the user's settings afterwards.

    A letter that no font has is drawn as a box, without a warning for each time it is measured.
    """
    with (
        mpl.rc_context(),
        mpl.style.context(["default", {**_STYLE, "font.family": families()}]),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        yield


@cache
def families() -> list[str]:
    """Return the `FONTS` that are installed: matplotlib logs each font that it cannot find."""
    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed]


def save(figure: Figure, png: Path, pdf: Path) -> None:
    """Write a figure as PNG (300 dpi) and PDF; the same figure gives the same bytes."""
    with styled():
        for path, kind in ((png, "png"), (pdf, "pdf")):
            metadata = {"CreationDate": None} if kind == "pdf" else None
            with replacing(path) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)
            figure.set_layout_engine("none")  # laid out once: it takes as long as drawing


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def literal(text: str) -> str:
    """Return text that matplotlib draws as it is: a dollar sign begins no formula."""
    return visible(text).replace("$", r"\$")


def wrapped(text: str, width: int) -> str:
    """Return text broken into lines, as `literal` gives it.

    It breaks at spaces; a word longer than a line at its underscores, hyphens and slashes; a part
    that is still longer anywhere. No line begins with the dot of a cell's label.
    """
    lines = [""]
    for word in re.findall(r"\S+(?:\s+·)*", visible(text)):
        for number, part in enumerate(_parts(" ".join(word.split()), width)):
            longer = f"{lines[-1]} {part}" if lines[-1] and not number else lines[-1] + part
            if letters(longer) <= width or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(part)
    return literal("\n".join(lines))


def letters(text: str) -> int:
    """Return the width of a line in letters; wide East Asian ones count as two."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def _parts(word: str, width: int) -> list[str]:
    """Split a word into parts that each fit in a line."""
    if letters(word) <= width:
        return [word]
    parts: list[str] = []
    for part in re.split(r"(?<=\w[_/])(?=[^\W_])|(?<=[^\W\d]-)(?=\w)|(?<=\S·)(?=\S)", word):
        rest = part
        while letters(rest) > width:
            fitting = next(
                n for n in range(len(rest), 0, -1) if letters(rest[:n]) <= width or n == 1
            )
            parts.append(rest[:fitting])
            rest = rest[fitting:]
        parts.append(rest)
    return [part for part in parts if part]


def lines_in(labels: Iterable[str]) -> int:
    """Return the number of lines of the tallest wrapped label."""
    return max((label.count("\n") + 1 for label in labels), default=1)


def labels_of(cells: pd.DataFrame) -> dict[str, str]:
    """Return the label of each cell id, in plan order."""
    return dict(zip(cells["cell"], cells["label"], strict=True))


def seed_means(rows: pd.DataFrame) -> pd.Series:
    """Return the mean over seeds by cell id; NaN if a seed is NaN: it is not dropped."""
    groups = rows.groupby("cell")["value"]
    return groups.mean().where(groups.size() == groups.count())


def assign_styles(order: Sequence[str], best: Sequence[str]) -> dict[str, Style]:
    """Return the styles of the cells in that order: of all if they are few, else of the best."""
    chosen = order if len(order) <= MOST_STYLES else best[:MOST_STYLES]
    return dict(zip((cell for cell in order if cell in chosen), STYLES, strict=False))
