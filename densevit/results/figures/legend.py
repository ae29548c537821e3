"""Legends and notes below a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from densevit.results.figures.style import (
    COLUMN,
    LETTER,
    LINE,
    SMALL,
    Style,
    letters,
    lines_in,
    wrapped,
)


class Legend:
    """A legend above the figure; two or three columns if all labels are short."""

    def __init__(self, labels: Sequence[str]) -> None:
        # matplotlib ignores a label that begins with an underscore.
        self.labels = [" " + text if text[:1] == "_" else text for text in labels]
        self.labels = [wrapped(text, 56) for text in self.labels]
        longest = max(
            (letters(line) for text in self.labels for line in text.split("\n")), default=0
        )
        self.columns = 3 if longest <= 13 else 2 if longest <= 24 else 1
        self.columns = min(self.columns, max(1, len(labels)))

    @property
    def height(self) -> float:
        """The height in inches."""
        if not self.labels:
            return 0.0
        rows = math.ceil(len(self.labels) / self.columns)
        return 0.08 + rows * 0.125 * lines_in(self.labels)

    def draw(self, figure: Figure, handles: Sequence[Artist]) -> None:
        if self.labels:
            figure.legend(
                handles, self.labels, loc="outside upper left", frameon=False, ncols=self.columns,
                handletextpad=0.4, columnspacing=1.0, labelspacing=0.3, borderaxespad=0.1,
            )  # fmt: skip


def handle(style: Style, *, line: bool = False) -> Line2D:
    """Return the legend handle of a style: its marker, on a `line` if there are lines."""
    return Line2D(
        [], [], color=style.color, marker=style.marker, markersize=4, linewidth=1.2,
        linestyle=style.dashes if line else "",
    )  # fmt: skip


def note(figure: Figure, texts: Sequence[str], width: float = COLUMN) -> None:
    """Write sentences below the figure, in small letters."""
    if texts:
        figure.supxlabel(
            _note_text(texts, width), fontsize=SMALL, color="#555555", x=0.01, ha="left",
            linespacing=1.2,
        )  # fmt: skip


def note_height(texts: Sequence[str], width: float = COLUMN) -> float:
    """Return the height of a note in inches."""
    return LINE * lines_in([_note_text(texts, width)]) + 0.03 if texts else 0.0


def _note_text(texts: Sequence[str], width: float) -> str:
    return wrapped(" ".join(texts), int(width / (LETTER * 0.87)))
