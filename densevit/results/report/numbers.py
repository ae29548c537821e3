"""The numeric sections of a report: tables and figures, each with an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from densevit.config.evaluation_names import CLEAN
from densevit.config.metrics import CLASSIFICATION, MULTILABEL
from densevit.config.probes import probes_by_name
from densevit.results.analysis import MOST_LEVELS, Findings, leveled_axes
from densevit.results.report import phrases
from densevit.results.report.document import Block, FigureBlock, Fold, Items, Paragraph
from densevit.results.stats.ranking import image_rows
from densevit.results.stats.seeds import summary
from densevit.results.tables import format
from densevit.results.tables.costs import cost_table
from densevit.results.tables.differences import difference_table
from densevit.results.tables.effects import marginal_table
from densevit.results.tables.main_table import CellTable, cell_table, cell_table_text
from densevit.results.tables.table import MISSING, TextTable
from densevit.sweep.cells import value_text

SMALLEST_SHOWN = 0.05  # points; smaller differences would not be visible
MOST_FLIPS = 10
MOST_UNFOLDED = 16  # rows of a table that is shown unfolded
INTERVALS = (
    "95 % t intervals over the seeds of each cell. Whether two of them overlap establishes "
    "nothing, since cells are compared seed by seed. intervals.csv holds these numbers, intervals "
    "over seeds and images together, and interquartile means."
)


def shown_table(
    found: Findings, frame: pd.DataFrame, metric: str, *, intervals: bool = False
) -> tuple[CellTable, str]:
    """Return a table's shown rows, and a sentence that names the selection if some are left out."""
    table = cell_table(found.plan, frame, metric, intervals=intervals, only=found.shown)
    if len(found.shown) == len(found.cells):
        return table, ""
    note = (
        f"{len(found.shown)} of {len(found.cells)} cells are shown: the most accurate, and those "
        "with established differences, each with its baseline."
    )
    return table, note


def _cells(found: Findings, frame: pd.DataFrame, metric: str) -> TextTable:
    table, note = shown_table(found, frame, metric)
    return cell_table_text(table, note=note)


def accuracy(found: Findings, table: TextTable, drawn: Sequence[FigureBlock]) -> list[Block]:
    """Return the section on accuracy; `table` is the main table."""
    explained = (
        "Mean ± standard deviation (n − 1) over the seeds. The column seeds shows finished / "
        "planned runs; – marks an axis that does not apply to a cell. The numbers are in table.csv."
    )
    blocks: list[Block] = [Paragraph(explained), table, *drawn]
    if found.coverage.loc[found.coverage["measured"]].groupby("cell").size().gt(1).any():
        with_intervals, _ = shown_table(found, found.frame, found.metric, intervals=True)
        text = cell_table_text(with_intervals, note=INTERVALS)
        blocks.append(Fold("The same with 95 % intervals of the means", "", [text]))
    return blocks


def differences(found: Findings) -> list[Block]:
    if found.differences.empty:
        return []
    rows = found.differences[found.differences["cell"].isin(found.shown)]
    return [difference_table(rows, found.cells, found.smallest_effect)]


def effects(found: Findings, drawn: Sequence[FigureBlock]) -> list[Block]:
    if found.marginals.empty:
        return list(drawn)
    table = marginal_table(found.marginals, found.metric)
    blocks: list[Block] = [Paragraph(" ".join(_averaged(found))), *drawn]
    if len(table.rows) <= MOST_UNFOLDED:
        blocks.append(table)
    else:
        blocks.append(Fold(table.title, f"({len(table.rows)} effects)", [table]))
    if len(found.shares):
        blocks.append(_shares(found.shares))
    if len(found.flips):
        blocks.append(Items([_flip(row) for row in found.flips.head(MOST_FLIPS).itertuples()]))
    return blocks


def _averaged(found: Findings) -> list[str]:
    """Return sentences that define the effects and name what is left out."""
    lines = [
        "The effect of a level of an axis is its difference to the reference level, averaged over "
        "all settings of the other axes that have runs of both levels."
    ]
    leveled = leveled_axes(found.cells, found.plan.axes)
    many = [axis for axis in found.plan.axes if axis not in leveled]
    if many:
        lines.append(f"Axes with more than {MOST_LEVELS} levels are left out: {', '.join(many)}.")
    shown = list(dict.fromkeys(found.marginals["benchmark"]))
    if len(shown) < image_rows(found.frame)["benchmark"].nunique():
        lines.append(f"Effects are computed for these test sets only: {', '.join(shown)}.")
    return lines


def _shares(shares: pd.DataFrame) -> TextTable:
    sources = list(dict.fromkeys(shares["source"]))
    found = shares.set_index(["benchmark", "source"])["share"]
    body = [
        [name, *(f"{100 * found.get((name, source), 0.0):.0f} %" for source in sources)]
        for name in dict.fromkeys(shares["benchmark"])
    ]
    note = (
        "The share of the variance of accuracy that each axis explains, over the runs of the cells "
        "to which all axes apply."
    )
    return TextTable("Shares of variance", ["benchmark", *sources], body, note)


def _flip(row: Any) -> str:
    """Return a sentence on two levels of an axis whose order depends on another axis."""
    first = f"{phrases.signed(row.difference1)} {phrases.bracket(row.low1, row.high1)}"
    second = f"{phrases.signed(row.difference2)} {phrases.bracket(row.low2, row.high2)}"
    a, b = value_text(row.a), value_text(row.b)
    return (
        f"On {row.benchmark} the effect of {row.axis} depends on {row.other}: {a} {format.MINUS} "
        f"{b} is {first} at {value_text(row.level1)}, and {second} at {value_text(row.level2)}."
    )


def matched_clean(found: Findings) -> list[Block]:
    """Return the clean accuracy to compare a benchmark with, if its classes or their mix differ."""
    frame = found.frame
    matched = frame[frame["metric"] == "matched_clean"]
    if matched.empty:
        return []
    chosen = frame[(frame["metric"] == "top1") & frame["benchmark"].isin(CLEAN)]
    by_run = chosen.sort_values("benchmark").drop_duplicates("run").set_index("run")["value"]
    other = (matched["value"] - matched["run"].map(by_run)).abs() >= SMALLEST_SHOWN
    shown = matched[matched["benchmark"].isin(set(matched.loc[other, "benchmark"]))]
    if shown.empty:  # the same classes in the same mix
        return []
    text = (
        "Accuracy on the clean images of each benchmark's own classes, among these classes and "
        "weighted by their frequency in the benchmark. Compare accuracy under shift with it."
    )
    return [Paragraph(text), _cells(found, shown, "matched_clean")]


def robustness(found: Findings, drawn: Sequence[FigureBlock]) -> list[Block]:
    """Return the accuracy beyond what clean accuracy predicts, by a line of reference models."""
    if found.robust.empty:
        return list(drawn)
    cell_of = {run.id: run.cell for run in found.plan.runs}
    robust = found.robust.assign(cell=found.robust["run"].map(cell_of))
    robust = robust[robust["cell"].isin(found.shown)]
    values = robust.rename(columns={"effective": "value"}).assign(metric="effective")
    means = {(row.cell, row.benchmark): row for row in summary(values).itertuples(index=False)}
    names = list(dict.fromkeys(robust["benchmark"]))
    body = [
        [found.labels[str(cell)], *(_mean(means.get((cell, name))) for name in names)]
        for cell in dict.fromkeys(robust["cell"])
    ]
    text = (
        "Accuracy minus what a line through reference models, on the logit scale, predicts from "
        "clean accuracy: mean over seeds with its 95 % t interval."
    )
    spread = robust.groupby("benchmark", sort=False)["spread"].first()
    around = ", ".join(f"{value:.1f} ({name})" for name, value in spread.items())
    text += (
        " The line is uncertain itself, which the intervals do not show: its reference models lie "
        f"around it with a standard deviation of {around} points."
    )
    outside = robust.loc[robust["extrapolated"], "cell"].unique()
    if len(outside):
        names_outside = phrases.listed(found.labels[cell] for cell in outside)
        text += f" Outside the clean accuracies of the reference models: {names_outside}."
    table = TextTable("Effective robustness (points)", ["cell", *names], body)
    return [Paragraph(text), table, *drawn]


def _mean(row: Any) -> str:
    """Return `+1.8 [0.9, 2.7]`."""
    if row is None:
        return MISSING
    return format.interval_text(row.mean, row.low, row.high, row.metric, "+")


def probes(found: Findings, drawn: Sequence[FigureBlock]) -> list[Block]:
    """Return a table for each main metric of a probe that no test set has."""
    main = dict.fromkeys(probe.metrics[0] for probe in probes_by_name().values())
    present = set(found.frame["metric"])
    blocks: list[Block] = []
    for metric in main:
        if metric not in (*CLASSIFICATION, *MULTILABEL) and metric.name in present:
            text = f"{metric.title} of probes of frozen features, on the images of the probe."
            blocks += [Paragraph(text), _cells(found, found.frame, metric.name)]
    return [*blocks, *drawn] if blocks else []


def matches(pairs: Sequence[tuple[str, FigureBlock]]) -> list[Block]:
    if not pairs:
        return []
    text = (
        "The patch of view 2 that is most similar to each patch of view 1, by backbone features, "
        "on val images. The geometry of the two views tells which of these matches are right."
    )
    return [Paragraph(text), *(Fold(name, "", [figure]) for name, figure in pairs)]


def cost(found: Findings, drawn: Sequence[FigureBlock]) -> list[Block]:
    if found.costs.empty:
        return []
    cells = found.cells[found.cells["cell"].isin(found.shown)]
    total = found.costs["gpu_hours"].sum()
    energy = found.costs["kwh"].sum()
    more = f", and their GPUs {format.short(energy)} kWh" if energy > 0 else ""
    hours = format.short(total)
    text = f"All runs took {hours} GPU-hours (an hour without a GPU counts as one){more}."
    blocks: list[Block] = [Paragraph(text)] if total > 0 else []
    ids = set(found.shown)
    costs, frame = (rows[rows["cell"].isin(ids)] for rows in (found.costs, found.frame))
    return [*blocks, cost_table(costs, frame, cells), *drawn]
