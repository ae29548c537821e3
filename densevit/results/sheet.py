"""A table for people as one neutral record of texts, and its writers: Markdown, CSV, terminal.

`latex.py` has the writer for papers.
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

MISSING = "missing"  # what was planned and is not there
NOT_APPLICABLE = "–"  # what no run of the sweep could give
DAGGER = "†"

# `best`: the column's best, told apart from every other; `tied`: the best or not told apart from it
Mark = Literal["best", "tied"]


@dataclass(frozen=True)
class Sheet:
    """A table of texts.

    Columns from `numeric_from` on hold numbers; those before it say whose they are. `note` is a
    sentence or more to stand below. `marks` are of cells (row, column), counted from 0 without the
    head. `data` are the numbers behind the texts at full precision, which `to_csv` prefers to them.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numeric_from: int = 1
    marks: Mapping[tuple[int, int], Mark] = field(default_factory=dict)
    data: pd.DataFrame | None = field(default=None, compare=False, repr=False)


def to_markdown(sheet: Sheet) -> str:
    """A table with aligned columns and below it the note, if there is one; ends in a line break.

    The title is left to the page, which knows how deep its headings are.
    """
    marked = [
        [_emphasised(_escaped(text), sheet.marks.get((i, j))) for j, text in enumerate(row)]
        for i, row in enumerate(sheet.rows)
    ]
    cells = [[_escaped(text) for text in sheet.head], *marked]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(sheet.head))]
    rules = [
        "-" * width if i < sheet.numeric_from else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |"
        for row in [cells[0], rules, *cells[1:]]
    ]
    below = f"\n{sheet.note}\n" if sheet.note else ""
    return "\n".join(lines) + "\n" + below


def to_csv(sheet: Sheet) -> str:
    """The numbers with full precision where the sheet has them, else its texts; no title or note.

    A number that is not there is an empty field.
    """
    if sheet.data is not None:
        return sheet.data.to_csv(index=False, lineterminator="\n")
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([sheet.head, *sheet.rows])
    return written.getvalue()


def to_rich(sheet: Sheet) -> Group:
    """The title, the table and the note for a terminal, which may be wider than the table."""
    # Text and not str: names are the user's and may hold what rich takes for markup.
    shown = Table()
    for i, name in enumerate(sheet.head):
        side = "left" if i < sheet.numeric_from else "right"
        # Folded and not cut in a narrow terminal: else nobody knows which column is which.
        shown.add_column(Text(name, overflow="fold"), justify=side, overflow="fold")
    for i, row in enumerate(sheet.rows):
        shown.add_row(*(_styled(text, sheet.marks.get((i, j))) for j, text in enumerate(row)))
    note = [Text(sheet.note, style="dim")] if sheet.note else []
    return Group(Text(sheet.title, style="italic"), shown, *note)


def _styled(text: str, mark: Mark | None) -> Text:
    if mark == "tied":
        return Text(f"{text} {DAGGER}")
    return Text(text, style="bold" if mark == "best" else "dim" if text == MISSING else "")


def _emphasised(text: str, mark: Mark | None) -> str:
    if mark == "tied":
        return f"{text} {DAGGER}"
    return f"**{text}**" if mark == "best" else text


def _escaped(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
