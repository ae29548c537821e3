"""A report as sections of plain blocks, which `page.py` makes a page of; here, Markdown.

All text is plain: whoever writes it out escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

from densevit.results import sheet as sheets
from densevit.results.sheet import Sheet


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Items:
    """Sentences of a list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines to be read or pasted as they are."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A figure.

    `file` is a PNG in the report's folder, `image` the bytes that a page holds (PNG or JPEG, of
    `width` x `height` pixels). `alt` says what can be read from it, `caption` what is shown and
    which interval; `also` is the name of the same as PDF.
    """

    file: str
    image: bytes
    width: int
    height: int
    alt: str
    caption: str
    also: str = ""


@dataclass(frozen=True)
class Fold:
    """Blocks under a line of their own: bold `title`, then `note`. On a page they fold away."""

    title: str
    note: str
    blocks: Sequence[Block]
    open: bool = False


Block = Paragraph | Items | Code | Picture | Sheet | Fold


@dataclass(frozen=True)
class Section:
    """A part of the report; those that are not `brief` are left out of the short form."""

    id: str
    title: str
    blocks: Sequence[Block]
    brief: bool = True


@dataclass(frozen=True)
class Document:
    """`lead` is what stands below the title: the question and the description."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]


# Bytes that a terminal would obey, from logs and messages of libraries.
SHOWN = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


def to_markdown(document: Document) -> str:
    """The short form, ending in a line break."""
    parts = [f"# {document.title}", *document.lead]
    for section in document.sections:
        if section.brief:
            parts += [f"## {section.title}", *map(_markdown, section.blocks)]
    return "\n\n".join(part for part in parts if part).translate(SHOWN) + "\n"


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
def _(block: Picture) -> str:
    also = f" Also as [PDF]({block.also})." if block.also else ""
    return f"![{block.alt}]({block.file})\n\n{block.caption}{also}"


@_markdown.register
def _(block: Sheet) -> str:
    return sheets.to_markdown(block).strip()


@_markdown.register
def _(block: Fold) -> str:
    head = f"**{_line(block.title)}**" + (f" {_line(block.note)}" if block.note else "")
    return "\n\n".join([head, *map(_markdown, block.blocks)])
