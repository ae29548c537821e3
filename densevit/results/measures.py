"""The parts of a report that show numbers: tables and figures, each with what it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from densevit.config import PROBES
from densevit.data.names import CLEAN
from densevit.results import tables, words
from densevit.results.document import Block, Fold, Items, Paragraph, Picture
from densevit.results.findings import MOST_LEVELS, Findings, leveled_axes
from densevit.results.sheet import MISSING, Sheet
from densevit.results.stats import summary
from densevit.sweep.grid import value_word

LEAST_SHOWN = 0.05  # points: less would not be seen
FLIPS_SHOWN = 10
ROWS_OPEN = 16  # of a table that need not be folded away
INTERVALS = (
    "t intervals over the seeds of a cell alone. Whether two of them overlap decides nothing, as "
    "cells are compared seed by seed. intervals.csv has these numbers, intervals over seeds and "
    "pictures together, and interquartile means."
)


def shown_table(
    found: Findings, frame: pd.DataFrame, metric: str = "top1", *, intervals: bool = False
) -> tuple[tables.CellTable, str]:
    """The rows that are shown of a table, and a sentence that says which of a large one."""
    table = tables.cell_table(found.plan, frame, metric, intervals=intervals, only=found.shown)
    if len(found.shown) == len(found.cells):
        return table, ""
    told = f"{len(found.shown)} of {len(found.cells)} cells are shown: the most accurate, and " \
           "those with decided differences, each with its baseline."  # fmt: skip
    return table, told


def _cells(found: Findings, frame: pd.DataFrame, metric: str) -> Sheet:
    table, note = shown_table(found, frame, metric)
    return tables.cell_sheet(table, note=note)


def accuracy(found: Findings, shown: Sheet, drawn: Sequence[Picture]) -> list[Block]:
    """`shown` is the main table."""
    explained = (
        "Mean ± standard deviation over the seeds (n−1 in the denominator). seeds counts the "
        "finished runs of a cell among those planned; – marks an axis that does not apply. The "
        "numbers are in table.csv."
    )
    blocks = [Paragraph(explained), shown, *drawn]
    if found.coverage.loc[found.coverage["measured"]].groupby("cell").size().gt(1).any():
        table, _ = shown_table(found, found.frame, intervals=True)
        sheet = tables.cell_sheet(table, note=INTERVALS)
        blocks.append(Fold("The same with 95 % intervals of the means", "", [sheet]))
    return blocks


def differences(found: Findings, drawn: Sequence[Picture]) -> list[Block]:
    if found.differences.empty:
        return []
    rows = found.differences[found.differences["cell"].isin(found.shown)]
    sheet = tables.difference_table(rows, found.cells, found.wanted)
    return [sheet, *drawn]


def effects(found: Findings, drawn: Sequence[Picture]) -> list[Block]:
    if found.marginals.empty:
        return list(drawn)
    table = tables.marginal_table(found.marginals)
    small = len(table.rows) <= ROWS_OPEN
    listed = table if small else Fold(table.title, f"({len(table.rows)} effects)", [table])
    blocks: list[Block] = [Paragraph(" ".join(_averaged(found))), *drawn, listed]
    if len(found.shares):
        blocks.append(_shares(found.shares))
    if len(found.flips):
        blocks.append(Items([_flip(row) for row in found.flips.head(FLIPS_SHOWN).itertuples()]))
    return blocks


def _averaged(found: Findings) -> list[str]:
    """What the effects are, and which are not told."""
    told = [
        "The effect of a level of an axis, averaged over all settings of the other axes in which "
        "both levels were run."
    ]
    leveled = leveled_axes(found.cells, found.plan.axes)
    many = [axis for axis in found.plan.axes if axis not in leveled]
    if many:
        told.append(f"Left out, since it has more than {MOST_LEVELS} levels: {', '.join(many)}.")
    shown = list(dict.fromkeys(found.marginals["benchmark"]))
    if len(shown) < found.frame.loc[found.frame["metric"] == "top1", "benchmark"].nunique():
        told.append(f"Of the test sets: {', '.join(shown)}.")
    return told


def _shares(shares: pd.DataFrame) -> Sheet:
    sources = list(dict.fromkeys(shares["source"]))
    found = shares.set_index(["benchmark", "source"])["share"]
    body = [
        [name, *(f"{100 * found.get((name, source), 0.0):.0f} %" for source in sources)]
        for name in dict.fromkeys(shares["benchmark"])
    ]
    note = (
        "How much of the variance of accuracy each axis accounts for, over the runs of the cells "
        "to which all axes apply."
    )
    return Sheet("Shares of variance", ["benchmark", *sources], body, note)


def _flip(row: object) -> str:
    """Two levels of an axis whose order depends on another axis."""
    first = f"{words.signed(row.difference1)} {words.bracket(row.low1, row.high1)}"
    second = f"{words.signed(row.difference2)} {words.bracket(row.low2, row.high2)}"
    a, b = value_word(row.a), value_word(row.b)
    return (
        f"On {row.benchmark} the answer depends on {row.other}: {row.axis} {a} {words.MINUS} {b} "
        f"is {first} at {value_word(row.level1)}, and {second} at {value_word(row.level2)}."
    )


def matched_clean(found: Findings) -> list[Block]:
    """Clean accuracy to compare a benchmark with, where it has other classes or another mix."""
    frame = found.frame
    matched = frame[frame["metric"] == "matched_clean"]
    if matched.empty:
        return []
    chosen = frame[(frame["metric"] == "top1") & frame["benchmark"].isin(CLEAN)]
    by_run = chosen.sort_values("benchmark").drop_duplicates("run").set_index("run")["value"]
    other = (matched["value"] - matched["run"].map(by_run)).abs() >= LEAST_SHOWN
    shown = matched[matched["benchmark"].isin(set(matched.loc[other, "benchmark"]))]
    if shown.empty:  # the same classes in the same mix
        return []
    told = (
        "On clean pictures of each benchmark's own classes, among these, and weighted to its mix "
        "of them: what the accuracy under shift is to be compared with."
    )
    return [Paragraph(told), _cells(found, shown, "matched_clean")]


def robustness(found: Findings, drawn: Sequence[Picture]) -> list[Block]:
    """Accuracy beyond what clean accuracy predicts, where reference models were measured."""
    if found.fault:
        return [Paragraph(f"Not computed: {found.fault}."), *drawn]
    if found.robust.empty:
        return list(drawn)
    robust = found.robust.assign(cell=found.robust["run"].map(_cell_of(found)))
    robust = robust[robust["cell"].isin(found.shown)]
    values = robust.rename(columns={"effective": "value"}).assign(metric="effective")
    means = {(row.cell, row.benchmark): row for row in summary(values).itertuples(index=False)}
    names = list(dict.fromkeys(robust["benchmark"]))
    body = [
        [found.labels[str(cell)], *(_mean(means.get((cell, name))) for name in names)]
        for cell in dict.fromkeys(robust["cell"])
    ]
    note = " Runs whose clean accuracy lies outside that of the references are among them."
    told = (
        "Points of accuracy beyond what a line through reference models predicts from clean "
        "accuracy, on the logit scale; mean over seeds with its 95 % t interval."
    ) + (note if robust["extrapolated"].any() else "")
    sheet = Sheet("Effective robustness (points)", ["cell", *names], body)
    return [Paragraph(told), sheet, *drawn]


def _mean(row: Any) -> str:
    """`+1.8 [0.9, 2.7]`"""
    if row is None:
        return MISSING
    return tables.interval_text(row.mean, row.low, row.high, row.metric, "+")


def _cell_of(found: Findings) -> dict[str, str]:
    return {run.id: run.cell for run in found.plan.runs}


def probes(found: Findings, drawn: Sequence[Picture]) -> list[Block]:
    """What the patch tokens know: the linear segmentation, where runs have one."""
    if not (found.frame["metric"] == "miou").any():
        return []
    told = (
        "Mean intersection over union (%) of a linear segmentation on frozen patch tokens. "
        f"Other probes ({', '.join(PROBES[:-1])}) stand in the table of accuracy."
    )
    return [Paragraph(told), _cells(found, found.frame, "miou"), *drawn]


def matches(pairs: Sequence[tuple[str, Picture]]) -> list[Block]:
    if not pairs:
        return []
    told = (
        "Which patch of view 2 is most similar to a patch of view 1, by the backbone's features, "
        "on val pictures; right by the geometry of the two views."
    )
    return [Paragraph(told), *(Fold(name, "", [pic], open=False) for name, pic in pairs)]


def cost(found: Findings, drawn: Sequence[Picture]) -> list[Block]:
    if found.costs.empty:
        return []
    cells = found.cells[found.cells["cell"].isin(found.shown)]
    total = found.costs["gpu_hours"].sum()
    told = (
        f"All runs together: {tables.short(total)} GPU-hours (an hour without a GPU counts as one)."
    )
    blocks: list[Block] = [Paragraph(told)] if total > 0 else []
    ids = set(found.shown)
    costs, frame = (rows[rows["cell"].isin(ids)] for rows in (found.costs, found.frame))
    return [*blocks, tables.cost_table(costs, frame, cells), *drawn]
