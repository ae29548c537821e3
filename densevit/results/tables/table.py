"""A table as a neutral record of texts, and its writers for Markdown, CSV and the terminal.

`latex` has the writer for papers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from densevit.utils.escape import markdown, markdown_paragraph, spreadsheet, visible

MISSING = "missing"  # planned, but without results
NOT_APPLICABLE = "–"  # no run of the sweep can have a result here
DAGGER = "†"

# `best`: told apart from every other cell; `tied`: the best mean, or not told apart from it
Mark = Literal["best", "tied"]
# The color of an entry, which never says anything that its text does not.
Tone = Literal["better", "worse", "maybe better", "maybe worse", "equal", "noisy"]
_TERMINAL = {
    "better": "bold bright_blue", "worse": "bold dark_orange", "maybe better": "bright_blue",
    "maybe worse": "dark_orange", "equal": "", "noisy": "dim",
}  # fmt: skip


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Columns from `numeric_from` on hold numbers; those before it hold labels. `note` is text below
    the table. `marks` and `tones` map (row, column), counted from 0 without the header. `data`
    holds the numbers behind the texts at full precision; `to_csv` prefers them.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numeric_from: int = 1
    marks: Mapping[tuple[int, int], Mark] = field(default_factory=dict)
    tones: Mapping[tuple[int, int], Tone] = field(default_factory=dict)
    data: pd.DataFrame | None = field(default=None, compare=False, repr=False)


def to_markdown(table: TextTable) -> str:
    """Return a table with aligned columns, and the note below if there is one; end in a newline.

    The title is left to the page, which knows the level of its headings.
    """
    marked = [
        [_emphasized(markdown(text), table.marks.get((i, j))) for j, text in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    cells = [[markdown(text) for text in table.head], *marked]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.head))]
    rules = [
        "-" * width if i < table.numeric_from else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |"
        for row in [cells[0], rules, *cells[1:]]
    ]
    below = f"\n{markdown_paragraph(table.note)}\n" if table.note else ""
    return "\n".join(lines) + "\n" + below


def to_csv(table: TextTable) -> str:
    """Return the numbers at full precision if the table has them, else its texts; no title or note.

    A missing number is an empty field.
    """
    if table.data is not None:
        return frame_to_csv(table.data)
    buffer = io.StringIO()
    rows = [[spreadsheet(text) for text in row] for row in (table.head, *table.rows)]
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def frame_to_csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV; its numbers stay as they are, and no text of it is a formula."""

    def cell(value: object) -> object:
        return spreadsheet(value) if isinstance(value, str) else value

    # As objects: an integer stays one beside a missing value.
    texts = {
        place: pd.Series([cell(value) for value in column], frame.index, object)
        for place, (_, column) in enumerate(frame.items())
        if not pd.api.types.is_numeric_dtype(column)
    }
    columns = [texts.get(place, frame.iloc[:, place]) for place in range(frame.shape[1])]
    safe = pd.concat(columns, axis=1) if columns else frame
    safe.columns = [cell(name) for name in frame.columns]
    text: str = safe.to_csv(index=False, lineterminator="\n")
    return text


def to_rich(table: TextTable) -> Group:
    """Return the title, the table and the note for a terminal."""
    # Text, not str: names come from the user and may look like rich markup.
    grid = Table()
    for i, name in enumerate(table.head):
        side: Literal["left", "right"] = "left" if i < table.numeric_from else "right"
        # Fold, do not cut, in a narrow terminal: a cut header does not identify its column.
        grid.add_column(Text(visible(name), overflow="fold"), justify=side, overflow="fold")
    for i, row in enumerate(table.rows):
        grid.add_row(*(_styled(table, i, j, text) for j, text in enumerate(row)))
    note = [Text(table.note, style="dim")] if table.note else []
    return Group(Text(table.title, style="italic"), grid, *note)


def _styled(table: TextTable, row: int, column: int, text: str) -> Text:
    place, text = (row, column), visible(text)
    if place in table.tones:
        return Text(text, style=_TERMINAL[table.tones[place]])
    mark = table.marks.get(place)
    if mark == "tied":
        return Text(f"{text} {DAGGER}")
    return Text(text, style="bold" if mark == "best" else "dim" if text == MISSING else "")


def _emphasized(text: str, mark: Mark | None) -> str:
    if mark == "tied":
        return f"{text} {DAGGER}"
    return f"**{text}**" if mark == "best" else text
