"""A report as sections of plain blocks, and its Markdown form; `html.py` writes the page.

All text is plain: each writer escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

from densevit.results.tables import table
from densevit.results.tables.table import TextTable


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Items:
    """The sentences of a bullet list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines shown verbatim, to be read or pasted."""

    lines: Sequence[str]


@dataclass(frozen=True)
class FigureBlock:
    """A figure.

    `file` is a PNG in the report's folder. `image` holds the bytes that the page embeds (PNG or
    JPEG, `width` x `height` pixels). `alt` states what can be read from the figure; `caption`
    states what it shows and which interval. `pdf` is the file name of its PDF.
    """

    file: str
    image: bytes
    width: int
    height: int
    alt: str
    caption: str
    pdf: str


@dataclass(frozen=True)
class Fold:
    """Blocks under a line with a bold `title` and a `note`; collapsible on the page."""

    title: str
    note: str
    blocks: Sequence[Block]
    open: bool = False


Block = Paragraph | Items | Code | FigureBlock | TextTable | Fold


@dataclass(frozen=True)
class Section:
    """A part of the report; the short form omits sections that are not `brief`."""

    id: str
    title: str
    blocks: Sequence[Block]
    brief: bool = True


@dataclass(frozen=True)
class Document:
    """A report; `lead` stands below the title: the question and the description."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]


# In logs and library messages; a terminal would obey them. The reports show a mark instead.
CONTROL_CHARACTERS = dict.fromkeys(
    [*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}"
)


def to_markdown(document: Document) -> str:
    """Return the short form as Markdown, ending in a newline."""
    parts = [f"# {document.title}", *document.lead]
    for section in document.sections:
        if section.brief:
            parts += [f"## {section.title}", *map(_markdown, section.blocks)]
    return "\n\n".join(part for part in parts if part).translate(CONTROL_CHARACTERS) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())


@singledispatch
def _markdown(block: Block) -> str:
    raise TypeError(type(block))


@_markdown.register
def _(block: Paragraph) -> str:
    return block.text


@_markdown.register
def _(block: Items) -> str:
    return "\n".join(f"- {_line(text)}" for text in block.texts)


@_markdown.register
def _(block: Code) -> str:
    return "\n".join(f"    {line}" for line in block.lines)


@_markdown.register
def _(block: FigureBlock) -> str:
    return f"![{block.alt}]({block.file})\n\n{block.caption} Also as [PDF]({block.pdf})."


@_markdown.register
def _(block: TextTable) -> str:
    return table.to_markdown(block).strip()


@_markdown.register
def _(block: Fold) -> str:
    head = f"**{_line(block.title)}**" + (f" {_line(block.note)}" if block.note else "")
    return "\n\n".join([head, *map(_markdown, block.blocks)])
