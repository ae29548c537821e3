"""One style for all figures: readable in a paper's column, by the colour-blind and in grey print.

Nothing of the user's matplotlib is touched: no pyplot, no backend, settings only for a drawing.
Colour is never the only difference: what has a colour of its own has a marker and dashes too.
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D

from densevit.results.tables import METRICS
from densevit.rundir import replacing

# Okabe and Ito, "Color Universal Design" (2008), without black and the yellow that paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (2.5, 1)), (0, (8, 2)))
INK, FAINT, REST = "#222222", "#777777", "#b4b4b4"
COLUMN = 3.5  # inches, a column of a two-column paper
ROW = 0.16  # inches, a row of dots
LINE = 0.115  # inches, a line of small letters
SMALL = 6.0  # points, the smallest letters
LETTER = 0.052  # inches, about what a small letter takes
MOST_LOOKS = len(PALETTE)
# For letters that the first, which comes with matplotlib, lacks: those that are installed.
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
    "pdf.fonttype": 42,  # letters stay letters for the publisher's check
    "savefig.dpi": 300,
}


class Look(NamedTuple):
    """What a thing among a few is told by."""

    color: str
    marker: str
    dashes: Any


LOOKS = tuple(Look(*parts) for parts in zip(PALETTE, MARKERS, DASHES, strict=True))


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib's own defaults with ours over them, and the user's settings back afterwards.

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
    """Those of `FONTS` that are installed: matplotlib logs every one that it looks for in vain."""
    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed]


def save(figure: Figure, png: Path, pdf: Path) -> None:
    """Write a figure as PNG (300 dpi) and PDF; the same figure gives the same bytes."""
    with styled():
        for path, kind in ((png, "png"), (pdf, "pdf")):
            metadata = {"CreationDate": None} if kind == "pdf" else None
            with replacing(path) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata)
            figure.set_layout_engine("none")  # found once, which takes as long as drawing


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def wrapped(text: str, width: int) -> str:
    """Text over several lines, with dollar signs that matplotlib does not read as formulas.

    It breaks at spaces; a word that is longer than a line at its underscores, hyphens and slashes,
    and only what is longer still anywhere. No line begins with the dot of a cell's label.
    """
    lines = [""]
    for word in re.findall(r"\S+(?:\s+·)*", text):
        for number, part in enumerate(_parts(" ".join(word.split()), width)):
            joined = f"{lines[-1]} {part}" if lines[-1] and not number else lines[-1] + part
            if letters(joined) <= width or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(part)
    return "\n".join(lines).replace("$", r"\$")


def letters(text: str) -> int:
    """How wide a line is in letters: those of East Asia are two wide."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def _parts(word: str, width: int) -> list[str]:
    """A word in parts that each fit in a line."""
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
    """How many lines the tallest of wrapped labels has."""
    return max((label.count("\n") + 1 for label in labels), default=1)


def labels_of(cells: pd.DataFrame) -> dict[str, str]:
    """Cell id to its words, in the plan's order."""
    return dict(zip(cells["cell"], cells["label"], strict=True))


def seed_means(rows: pd.DataFrame) -> pd.Series:
    """The mean over seeds by cell id; NaN where a seed is: it is not dropped."""
    groups = rows.groupby("cell")["value"]
    return groups.mean().where(groups.size() == groups.count())


def picked(order: Sequence[str], best: Sequence[str], shown: Sequence[str]) -> list[str]:
    """The cells with a look of their own, in that order: all of a few, else those that are asked
    for (`shown`), else the best."""
    if len(order) <= MOST_LOOKS:
        return list(order)
    chosen = [cell for cell in shown if cell in set(order)] or list(best)
    return [cell for cell in order if cell in chosen[:MOST_LOOKS]]


class Legend:
    """A legend above everything, in one column or, if all labels are short, in two."""

    def __init__(self, labels: Sequence[str]) -> None:
        # matplotlib leaves out a label that begins with an underscore.
        self.labels = [" " + text if text[:1] == "_" else text for text in labels]
        self.labels = [wrapped(text, 56) for text in self.labels]
        longest = max(
            (letters(line) for text in self.labels for line in text.split("\n")), default=0
        )
        self.columns = 3 if longest <= 13 else 2 if longest <= 24 else 1
        self.columns = min(self.columns, max(1, len(labels)))

    @property
    def height(self) -> float:
        """Inches."""
        if not self.labels:
            return 0.0
        rows = math.ceil(len(self.labels) / self.columns)
        return 0.08 + rows * 0.125 * lines_in(self.labels)

    def draw(self, figure: Figure, handles: Sequence[Any]) -> None:
        if self.labels:
            figure.legend(
                handles, self.labels, loc="outside upper left", frameon=False, ncols=self.columns,
                handletextpad=0.4, columnspacing=1.0, labelspacing=0.3, borderaxespad=0.1,
            )  # fmt: skip


def handle(look: Look, *, line: bool = False, filled: bool = True) -> Line2D:
    """How a look is shown in a legend."""
    return Line2D(
        [], [], color=look.color, marker=look.marker, markersize=4, linewidth=1.2,
        linestyle=look.dashes if line else "",
        markerfacecolor=look.color if filled else "white",
    )  # fmt: skip


def note(figure: Figure, texts: Sequence[str], width: float = COLUMN) -> None:
    """Sentences below everything, in small letters."""
    if texts:
        figure.supxlabel(
            _note_text(texts, width), fontsize=SMALL, color="#555555", x=0.01, ha="left",
            linespacing=1.2,
        )  # fmt: skip


def note_height(texts: Sequence[str], width: float = COLUMN) -> float:
    """Inches."""
    return LINE * lines_in([_note_text(texts, width)]) + 0.03 if texts else 0.0


def _note_text(texts: Sequence[str], width: float) -> str:
    return wrapped(" ".join(texts), int(width / (LETTER * 0.87)))


def bare(axes: Axes, *sides: str) -> None:
    """Without the sides of the frame that carry nothing, top and right at least."""
    axes.spines[["top", "right", *sides]].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=2)


def said(axes: Axes, y: float, word: str, color: str = INK) -> None:
    """A word at the left of a row that has nothing to draw."""
    axes.text(
        0.02, y, word, color=color, fontsize=SMALL, style="italic", va="center",
        transform=axes.get_yaxis_transform(),
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def unit(metric: str) -> str:
    """What a difference in a metric is measured in: points, of what is a percentage."""
    title = METRICS[metric][0] if metric in METRICS else metric
    percent = "(%)" in title or metric.startswith("top1_") or metric == "beyond"
    return "points" if percent else title
