"""The conclusions of a sweep, the first section of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from densevit.results.analysis import Findings
from densevit.results.report import comparison_sentence, doubts, sentences
from densevit.results.report.document import Block, Fold, Items, Paragraph
from densevit.results.report.verdict_grid import verdict_grid
from densevit.sweep.cells import value_text

MOST_SENTENCES = 60

EXPLAINED = (
    "Each comparison pairs runs by seed: runs of the same seed share their initial weights and the "
    "order of their data. The 95 % confidence interval (CI, t distribution) is for the mean "
    "difference over these pairs: in about 95 of 100 sweeps like this one it would contain the "
    "true difference. A difference is established if p < 0.05 after Holm's correction for all "
    "comparisons: chance alone would rarely produce it. The number of seeds needed is computed "
    "from the spread between the seeds so far, with the correction for all comparisons that are "
    "not established; with two or three seeds it is a rough guess."
)


def question(file: Path) -> str:
    """Return the text after `# Question:` in a sweep file's leading comments.

    It ends before a line that is empty or begins with another capitalized word and a colon.
    """
    words: list[str] = []
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
            words = [text.removeprefix("Question:").strip()]
        elif words and (not text or (first.endswith(":") and first[:1].isupper())):
            break
        elif words:
            words.append(text)
    joined = " ".join(words)
    return joined[:1].upper() + joined[1:]


def conclusions(found: Findings) -> list[str]:
    """Return the answer to the sweep's question as sentences, the most certain ones first."""
    if found.plan.spec.baseline is None:
        return ["The sweep names no baseline (key baseline), so no differences are computed."]
    return [
        *sentences.verdicts(found.differences, found.names, found.smallest_effect),
        *sentences.averaged(found.marginals),
        *_beyond_clean(found),
    ]


def reasons_for_doubt(found: Findings) -> list[str]:
    """Return what the reader should know before believing the answer."""
    lines = [
        *doubts.missing(found.coverage),
        *doubts.survivors(found.coverage),
        *doubts.identical(found.frame, found.labels),
        *doubts.unpaired(found.baselines, found.frame, found.names),
        *doubts.collapsed(found.collapsed, found.labels),
        *doubts.clipped(found.clipped, found.labels),
    ]
    if len(found.shown) < len(found.cells):
        lines.append(f"Only the {len(found.shown)} cells shown were checked for collapse.")
    return lines


def _beyond_clean(found: Findings) -> list[str]:
    all_rows = found.differences
    gains = all_rows[
        (all_rows["verdict"] == "established") & all_rows["benchmark"].isin(found.shifted)
    ]
    if gains.empty:
        return []
    lines = []
    for by_line in (True, False):
        rows = gains[gains["benchmark"].isin(found.lined) == by_line]
        lines += sentences.beyond_clean(rows, found.beyond, found.names, by_line)
    return lines


def answer(
    found: Findings,
    lines: Sequence[str],
    doubted: Sequence[str],
    changes: Mapping[str, Sequence[Block]],
) -> list[Block]:
    """Return the blocks of the first section: conclusions, the grid of verdicts, reasons for doubt,
    all comparisons, changes of numbers."""
    blocks: list[Block] = [Items(lines)]
    rows = found.differences[found.differences["cell"].isin(found.shown)]
    if len(rows):
        blocks.append(verdict_grid(rows, found.names, found.smallest_effect))
    blocks += [Paragraph("Before you believe it:"), Items(doubted)]
    texts = comparison_sentence.sentences(
        found.differences,
        found.names,
        found.smallest_effect,
        found.image_intervals.differences,
        MOST_SENTENCES,
    )
    if texts:
        total = len(found.differences)
        note = f"({total})" if len(texts) == total else f"({len(texts)} of {total})"
        if len(texts) < total:
            texts.append(f"And {total - len(texts)} more: see differences.csv.")
        listing: list[Block] = [Paragraph(EXPLAINED), Items(texts)]
        blocks.append(Fold("Every comparison in words", note, listing))
    for name, parts in changes.items():
        blocks += [Paragraph(f"Since the numbers were frozen as {name}:"), *parts]
    return blocks


def settings(where: Mapping[str, object]) -> str:
    """Return settings in words: `cl_mode: dense, temperature: 0.1`."""
    return ", ".join(f"{name}: {value_text(value)}" for name, value in where.items())
