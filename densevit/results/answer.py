"""The answer of a sweep, first of all its report: what is decided, what is not, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from densevit.results import words
from densevit.results.document import Block, Fold, Items, Paragraph
from densevit.results.findings import Findings
from densevit.sweep.grid import value_word

MOST_SENTENCES = 60
FEW_SENTENCES = 12  # that need not be folded away

EXPLAINED = (
    "Compared are runs of the same seed, which share their beginning and the order of their data. "
    "The 95 % interval (t distribution) is of the mean over such pairs: of a hundred sweeps like "
    "this one it would hold the true difference in about 95. Decided means that such a difference "
    "would be rare by chance even among this many comparisons (Holm's correction, p < 0.05). How "
    "many seeds are needed is computed from the spread seen so far, for a single comparison; from "
    "two or three seeds it is a rough guess."
)


def question(file: Path) -> str:
    """What the comments that a sweep file begins with ask: `# Question:` and the lines after it,
    until a line that is empty or begins with another word and a colon."""
    asked: list[str] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    for line in lines:
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        first = text.split(" ")[0]
        if first == "Question:":
            asked = [text.removeprefix("Question:").strip()]
        elif asked and (not text or (first.endswith(":") and first[:1].isupper())):
            break
        elif asked:
            asked.append(text)
    told = " ".join(asked)
    return told[:1].upper() + told[1:]


def answers(found: Findings) -> list[str]:
    """The answer to the sweep's question, shortest and most certain first."""
    base = found.plan.spec.baseline
    lines = []
    if base is None:
        lines.append("The sweep names no baseline (`baseline:`), so no differences are told.")
    else:
        lines.append(words.headline(found.differences, found.wanted, settings(base)))
        lines += words.averaged(found.marginals)
        lines += words.decided(found.differences, found.names)
        lines += [words.undecided(found.differences, found.names, found.wanted)]
        lines += _beyond_clean(found)
    lines += words.missing(found.coverage)
    lines += words.collapsed(found.collapsed, found.labels)
    if len(found.shown) < len(found.cells):
        lines.append(
            f"Collapse was looked for in the {len(found.shown)} cells that are shown alone."
        )
    return [line for line in lines if line]


def _beyond_clean(found: Findings) -> list[str]:
    rows = found.differences
    gains = rows[(rows["verdict"] == "different") & rows["benchmark"].isin(found.shifted)]
    if gains.empty:
        return []
    lines = []
    for by_line in (True, False):
        chosen = gains[gains["benchmark"].isin(found.lined) == by_line]
        lines += words.beyond_clean(chosen, found.beyond, found.names, by_line)
    return lines


def answer(
    found: Findings, told: Sequence[str], moved: Mapping[str, Sequence[Block]]
) -> list[Block]:
    """The answer (`told`, the `answers`), every comparison in words, and what has moved since
    numbers were frozen."""
    blocks: list[Block] = [Items(told)]
    rows = words.sentences(
        found.differences, found.names, found.wanted, found.pictures.differences, MOST_SENTENCES
    )
    if rows:
        total = len(found.differences)
        more = total - len(rows)
        note = f"({total})" if more <= 0 else f"({len(rows)} of {total})"
        listing = [row.text for row in rows]
        if more > 0:
            listing.append(f"And {more} more: see differences.csv.")
        explained = Paragraph(EXPLAINED)
        blocks.append(
            Fold(
                "Every comparison in words",
                note,
                [explained, Items(listing)],
                len(rows) <= FEW_SENTENCES,
            )
        )
    for name, parts in moved.items():
        blocks += [Paragraph(f"Since the numbers were frozen as {name}:"), *parts]
    return blocks


def settings(where: Mapping[str, object]) -> str:
    """Settings in words: `cl_mode: dense, temperature: 0.1`."""
    return ", ".join(f"{name}: {value_word(value)}" for name, value in where.items())
