"""A report as sections of plain blocks, and its Markdown form; `html.py` writes the page.

All text is plain: each writer escapes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

from densevit.results.tables import table
from densevit.results.tables.table import TextTable
from densevit.utils.escape import markdown, markdown_paragraph, visible


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


def to_markdown(document: Document) -> str:
    """Return the short form as Markdown, ending in a newline."""
    parts = [f"# {markdown(document.title)}", *map(markdown_paragraph, document.lead)]
    for section in document.sections:
        if section.brief:
            parts += [f"## {markdown(section.title)}", *map(block_markdown, section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


@singledispatch
def block_markdown(block: Block) -> str:
    """Return a block as Markdown."""
    raise TypeError(type(block))


@block_markdown.register
def _(block: Paragraph) -> str:
    return markdown_paragraph(block.text)


@block_markdown.register
def _(block: Items) -> str:
    return "\n".join(f"- {markdown_paragraph(text)}" for text in block.texts)


@block_markdown.register
def _(block: Code) -> str:
    lines = visible("\n".join(block.lines)).split("\n")
    return "\n".join(f"    {line}" for line in lines)


@block_markdown.register
def _(block: FigureBlock) -> str:
    alt = re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", markdown(block.alt))
    caption = markdown_paragraph(block.caption)
    return f"![{alt}]({block.file})\n\n{caption} Also as [PDF]({block.pdf})."


@block_markdown.register
def _(block: TextTable) -> str:
    return table.to_markdown(block).strip()


@block_markdown.register
def _(block: Fold) -> str:
    head = f"**{markdown(block.title)}**" + (f" {markdown(block.note)}" if block.note else "")
    return "\n\n".join([head, *map(block_markdown, block.blocks)])
