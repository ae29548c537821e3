"""Sentences about a sweep's results for readers without statistics.

Pure: frames in, text out. A sentence never claims more than its row. A difference that is not
established is named with the seeds it would take; one seed supports no claim about seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from densevit.results.collect.numbers import NOTHING_MEASURED
from densevit.results.report.phrases import (
    MOST_NAMED,
    MOST_SEEDS,
    bracket,
    decimals_for,
    difference_text,
    listed,
    listed_sets,
    signed,
    with_unit,
)
from densevit.results.stats.ranking import VERDICTS, ranked
from densevit.results.tables.format import MINUS
from densevit.sweep.cells import value_text
from densevit.utils.console import count

# A difference in the share of clipped steps from which on the report warns.
UNEVEN_CLIPPING = 0.2


def headline(differences: pd.DataFrame, smallest_effect: float, baseline: str) -> str:
    """Return one sentence that counts the comparisons by verdict."""
    if differences.empty:
        return "No comparison with the baseline can be made yet."
    total = count(len(differences), "comparison")
    few, many = differences["n"].min(), differences["n"].max()
    seeds = count(many, "seed") if few == many else f"{few} to {many} seeds"
    counts = differences["verdict"].value_counts()
    if counts.get("open", 0) == len(differences):
        return f"No difference from the baseline {baseline} is established ({seeds}, {total})."
    if counts.get("single", 0) == len(differences):
        return f"{total} with the baseline {baseline}, one seed each: no conclusion across seeds."
    bound = with_unit(smallest_effect, str(differences["metric"].iloc[0]))
    texts = {
        "different": "{} with an established difference",
        "alike": f"{{}} within ±{bound}",
        "open": "{} without an established difference",
        "single": "{} with one seed, which supports no conclusion across seeds",
        "undefined": "{} with a value that is not a number",
    }
    found = [texts[verdict].format(counts[verdict]) for verdict in VERDICTS if verdict in counts]
    return f"{total} with the baseline {baseline} ({seeds}): {'; '.join(found)}."


def established(differences: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """Return one sentence for cells above their baseline and one for cells below it."""
    rows = ranked(differences[differences["verdict"] == "different"])
    lines = []
    for title, chosen in (
        ("Higher than the baseline", rows[rows["difference"] > 0]),
        ("Lower than the baseline", rows[rows["difference"] < 0]),
    ):
        if len(chosen):
            lines.append(f"{title}: {_by_cell(chosen, names)}.")
    return lines


def not_established(
    differences: pd.DataFrame, names: Mapping[str, str], smallest_effect: float
) -> str:
    """Return the open comparisons, and how many more seeds the easiest and the hardest need."""
    rows = differences[(differences["verdict"] == "open") & differences["difference"].notna()]
    if rows.empty:
        return ""
    across = (rows["low"] <= 0) & (rows["high"] >= 0)  # others: open by Holm's correction
    more = (rows["seeds_needed"] - rows["n"]).clip(lower=0)
    needed = more[across & (more > 0)]
    line = f"No established difference: {_by_cell(ranked(rows), names)}."
    if needed.empty:
        return line
    few, many = int(needed.min()), int(needed.max())
    span = count(few, "more seed") if few == many else f"{few} to {count(many, 'more seed')}"
    if many > MOST_SEEDS:
        span = f"{few} or more seeds"
    target = with_unit(smallest_effect, str(rows["metric"].iloc[0]))
    return f"{line} To detect a difference of {target} with 80 % power, they need {span} each."


def _by_cell(rows: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Return `dense − none on a (+1.8 [0.9, 2.7])` for the first cells, and count the others."""
    by_cell: dict[str, list[str]] = {}
    for row in rows.itertuples(index=False):
        by_cell.setdefault(row.cell, []).append(f"{row.benchmark} ({difference_text(row)})")
    return listed(
        f"{names.get(cell, cell)} on {listed_sets(sets)}" for cell, sets in by_cell.items()
    )


def averaged(marginals: pd.DataFrame) -> list[str]:
    """Return one sentence per axis: its established effects, averaged over all other settings.

    `marginals` is `stats.marginals` with the column benchmark; p_holm covers all rows.
    """
    if marginals.empty:
        return []
    lines = []
    rows = marginals[marginals["p_holm"] < 0.05]
    rows = rows.assign(metric="top1", size=-rows["difference"].abs())
    rows = rows.sort_values("size", kind="stable")
    for axis in dict.fromkeys(marginals["axis"]):
        effects: dict[str, list[str]] = {}
        for row in rows[rows["axis"] == axis].itertuples(index=False):
            name = f"{value_text(row.level)} {MINUS} {value_text(row.reference)}"
            effects.setdefault(name, []).append(f"{row.benchmark} ({difference_text(row)})")
        found = listed(f"{name} on {listed_sets(sets)}" for name, sets in effects.items())
        found = found or "no effect is established"
        lines.append(f"Effect of {axis}, averaged over the other axes: {found}.")
    return lines


def missing(coverage: pd.DataFrame) -> list[str]:
    """Return sentences on the runs without results, by state, and on their cells."""
    lacking = coverage[~coverage["measured"]]
    total = len(coverage)
    if lacking.empty:
        return [f"All planned runs ({total}) are finished and have results."]
    kinds = lacking["state"].where(
        lacking["state"] != "finished", "finished without readable results"
    )
    kinds = kinds.mask(lacking["message"] == NOTHING_MEASURED, "finished on images without labels")
    states = ", ".join(f"{n} {kind}" for kind, n in kinds.value_counts().items())
    lines = [f"{total - len(lacking)} of {total} planned runs have results; {states}."]
    by_cell = coverage.groupby(["cell", "label"], sort=False)["measured"]
    counts = by_cell.agg(measured="sum", planned="size").reset_index()
    rows = list(counts.itertuples(index=False))
    without = [row.label for row in rows if row.measured == 0]
    fewer = [
        f"{row.label} ({row.measured} of {row.planned})"
        for row in rows
        if 0 < row.measured < row.planned
    ]
    if without:
        lines.append(f"Cells without any result: {listed(without)}.")
    if fewer:
        lines.append(f"Cells with fewer seeds than planned: {listed(fewer)}.")
    return lines


def beyond_clean(
    gains: pd.DataFrame, beyond: pd.DataFrame, names: Mapping[str, str], by_line: bool
) -> list[str]:
    """Return up to three sentences that relate differences under shift to clean accuracy.

    `gains` holds established differences on shifted test sets. `beyond` is `seeds.differences` of
    effective robustness (`by_line`), or else of accuracy minus clean accuracy.
    """
    rows = beyond[(beyond["n"] > 1) & beyond["difference"].notna()]
    both = ranked(gains).merge(rows, on=["cell", "benchmark"], suffixes=("", "_beyond"))
    same_sign = both["difference"] * both["difference_beyond"] > 0
    established = both["verdict_beyond"] == "different"
    reference = "what clean accuracy predicts" if by_line else "the change on clean data"
    return [
        f"{title} (in brackets: the difference, and its part beyond {reference}): "
        f"{listed(_part_beyond(row, names) for row in chosen.itertuples(index=False))}."
        for title, chosen in (
            ("Established beyond clean accuracy", both[established & same_sign]),
            ("Not established beyond clean accuracy", both[~established]),
            ("Smaller than clean accuracy predicts", both[established & ~same_sign]),
        )
        if len(chosen)
    ]


def _part_beyond(row: Any, names: Mapping[str, str]) -> str:
    difference, low, high = row.difference_beyond, row.low_beyond, row.high_beyond
    decimals = decimals_for(row.metric_beyond, difference, low, high)
    part = f"{signed(difference, decimals)} {bracket(low, high, decimals)}"
    name = f"{names.get(row.cell, row.cell)} on {row.benchmark}"
    return f"{name} ({difference_text(row)}, of which {part})"


def collapsed(last: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Return a sentence for each cell whose contrastive features had collapsed at the last check.

    `last` has cell, seed and value: the last `health/collapsed` of each run.
    """
    lines = []
    for cell, rows in last.groupby("cell", sort=False):
        fallen = sorted(rows.loc[rows["value"] == 1, "seed"])
        if fallen:
            seeds = ", ".join(map(str, fallen[:MOST_NAMED]))
            more = ", ..." if len(fallen) > MOST_NAMED else ""
            noun = "seed" if len(fallen) == 1 else "seeds"
            lines.append(
                f"The contrastive features of {labels.get(str(cell), str(cell))} collapsed in "
                f"{len(fallen)} of {count(len(rows), 'seed')} ({noun} {seeds}{more}). The results "
                "of these runs say little about the setting."
            )
    return lines


def clipped(logged: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Return a sentence if gradients were clipped much more often in one cell than in another.

    `logged` has cell and value: `train/clipped_share` of each logged interval.
    """
    shares = logged.groupby("cell", sort=False)["value"].mean()
    if len(shares) < 2 or shares.max() - shares.min() < UNEVEN_CLIPPING:
        return []
    most, least = (labels.get(str(cell), str(cell)) for cell in (shares.idxmax(), shares.idxmin()))
    return [
        f"Gradients were clipped in {shares.max():.0%} of the steps of {most} and in "
        f"{shares.min():.0%} of those of {least}: part of a difference between them may come from "
        "`grad_clip`. Repeat them with a higher value before you conclude."
    ]
