"""Sentences about a sweep's results for readers without statistics.

Pure: frames in, text out. A sentence never claims more than its row. A difference that is not
established is named with the seeds it would take; one seed supports no claim about seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from densevit.results.report.phrases import (
    MOST_NAMED,
    MOST_SEEDS,
    MOST_SETS,
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

FEW = 2  # hints that a sentence names


def verdicts(
    differences: pd.DataFrame, names: Mapping[str, str], smallest_effect: float
) -> list[str]:
    """Return a line for each verdict that occurs, the most certain first: what is established, what
    is a hint and why it is no evidence, what is equivalent, and what is too noisy to say.

    `differences` is `seeds.differences` of one metric; `names` are `contrast_names.contrasts`.
    """
    if differences.empty:
        return ["No comparison with the baseline can be made yet."]
    rows, total = ranked(differences), len(differences)
    by_verdict = {verdict: rows[rows["verdict"] == verdict] for verdict in VERDICTS}
    lines = [_established(by_verdict["established"], names, differences)]
    hints, alike, single, undefined = (
        by_verdict[name] for name in ("hint", "equivalent", "single", "undefined")
    )
    if len(hints):
        one = len(hints) == 1
        lines.append(
            f"{'A hint' if one else f'{len(hints)} hints'}, no evidence: "
            f"{_by_cell(hints, names, FEW, 1)}. {'It' if one else 'Each'} would count alone; among "
            f"{count(total, 'comparison')} chance often produces one."
        )
    if len(alike):
        bound = with_unit(smallest_effect, str(differences["metric"].iloc[0]))
        lines.append(f"Equivalent, surely within ±{bound}: {_by_cell(alike, names)}.")
    lines += _too_noisy(rows, smallest_effect)
    if len(single):
        lines.append(
            f"One seed: {len(single)} of {count(total, 'comparison')}; no conclusion across seeds."
        )
    if len(undefined):
        lines.append(
            f"Not a number: {len(undefined)} of {count(total, 'comparison')}, since a run diverged."
        )
    return lines


def _established(rows: pd.DataFrame, names: Mapping[str, str], differences: pd.DataFrame) -> str:
    few, many = differences["n"].min(), differences["n"].max()
    seeds = count(many, "seed") if few == many else f"{few} to {many} seeds"
    base = f"{count(len(differences), 'comparison')} with the baseline, {seeds}"
    if rows.empty:
        return f"Established: no difference ({base})."
    return f"Established ({base}): {_by_cell(rows, names)}."


def _too_noisy(rows: pd.DataFrame, smallest_effect: float) -> list[str]:
    """Return a line on the rows that say nothing, and the seeds that would settle them."""
    noisy = rows[rows["verdict"] == "too noisy"]
    if noisy.empty:
        return []
    line = f"Too noisy to say: {len(noisy)} of {count(len(rows), 'comparison')}."
    more = (noisy["seeds_needed"] - noisy["n"]).dropna()
    more = more[more > 0]
    if more.empty:
        return [line]
    target = with_unit(smallest_effect, str(rows["metric"].iloc[0]))
    few, many = int(more.min()), int(more.max())
    if few > MOST_SEEDS:
        return [f"{line} To establish {target} takes more than {MOST_SEEDS} more seeds."]
    upper = f"more than {MOST_SEEDS} more seeds" if many > MOST_SEEDS else count(many, "more seed")
    span = upper if few == many else f"{few} to {upper}"
    return [f"{line} To establish {target} takes {span}, by the spread so far."]


def _by_cell(
    rows: pd.DataFrame,
    names: Mapping[str, str],
    most_cells: int = MOST_NAMED,
    most_sets: int = MOST_SETS,
) -> str:
    """Return `dense − none on shapes-sketch (+1.8 [0.9, 2.7]), val (...); global − none on ...`."""
    by_cell: dict[str, list[str]] = {}
    for row in rows.itertuples(index=False):
        by_cell.setdefault(row.cell, []).append(f"{row.benchmark} ({difference_text(row)})")
    texts = (
        f"{names.get(cell, cell)} on {listed_sets(sets, most_sets)}"
        for cell, sets in by_cell.items()
    )
    return listed(texts, most_cells)


def averaged(marginals: pd.DataFrame) -> list[str]:
    """Return one sentence per axis with established effects, averaged over all other settings, and
    one that names the axes without.

    `marginals` is `stats.marginals` with the column benchmark; p_holm covers all rows.
    """
    if marginals.empty:
        return []
    lines, without = [], []
    rows = marginals[marginals["p_holm"] < 0.05]
    rows = rows.assign(metric="top1", size=-rows["difference"].abs())
    rows = rows.sort_values("size", kind="stable")
    for axis in dict.fromkeys(marginals["axis"]):
        effects: dict[str, list[str]] = {}
        for row in rows[rows["axis"] == axis].itertuples(index=False):
            name = f"{value_text(row.level)} {MINUS} {value_text(row.reference)}"
            effects.setdefault(name, []).append(f"{row.benchmark} ({difference_text(row)})")
        found = listed(f"{name} on {listed_sets(sets)}" for name, sets in effects.items())
        if found:
            lines.append(f"Effect of {axis}, averaged over the other axes: {found}.")
        else:
            without.append(axis)
    if without:
        lines.append(f"Averaged over the other axes, no effect is established: {listed(without)}.")
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
    established = both["verdict_beyond"] == "established"
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
