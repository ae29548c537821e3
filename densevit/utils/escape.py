"""Text of others in our outputs: it stays in its place, and nothing in it acts on the reader.

Names, messages and logs may come from files that somebody else made. Each output has one function:
`visible` for a terminal, a log, a web page (whose template escapes the rest) and MLflow, `markdown`
and `spreadsheet` here, `results.tables.latex.escaped`, and `results.figures.style.literal`.
"""

from __future__ import annotations

import re

MARK = "\N{REPLACEMENT CHARACTER}"

# Control characters except newline and tab, line separators, changes of the direction of writing
# (which hide or reorder text), and half characters, which no file can hold.
_ACTING = re.compile(
    "\r\n|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

# An underscore within a word is none of Markdown's signs, nor is a star between spaces, a bracket
# that no address or definition follows, or a `<` or `&` that begins no element and no entity.
_MARKDOWN = re.compile(
    r"[\\`$~|]|(?<=\S)\*|\*(?=\S)|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|<(?=[a-zA-Z/!?])|&(?=#?\w+;)"
)
_BLOCK = re.compile(r"^(?:\d+(?=[.)])|(?=[#>+=*-]))")

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
_NO_FORMULA = re.compile(r"[-+\d.,\s\[\]()±%]*")  # without names and functions, it computes nothing


def visible(text: str) -> str:
    """Return text with a mark for each character that a terminal or a browser would obey.

    Newlines stay, tabs become spaces, and a byte that is no text is shown as `\\udcff`.
    """
    return _ACTING.sub(_shown, text).expandtabs()


def _shown(found: re.Match[str]) -> str:
    if found[0] == "\r\n":
        return "\n"
    return ascii(found[0])[1:-1] if "\ud800" <= found[0] <= "\udfff" else MARK


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line: in a sentence, a title, a cell."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(visible(text).split()))


def markdown_paragraph(text: str) -> str:
    """Return text that is a paragraph of its own: its first character begins no other block."""
    return _BLOCK.sub(r"\g<0>\\", markdown(text))


def spreadsheet(text: str) -> str:
    """Return text for a cell of a CSV file; an apostrophe keeps it from being a formula.

    Numbers stay numbers, also negative ones.
    """
    text = visible(text)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return _NO_FORMULA.fullmatch(text) is not None
    return True
