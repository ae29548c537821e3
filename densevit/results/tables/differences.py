"""The table of differences from the baseline."""

from __future__ import annotations

from typing import Any

import pandas as pd

from densevit.results.tables.format import benchmarks_of, interval_text, metric_title
from densevit.results.tables.table import MISSING, TextTable


def difference_table(
    differences: pd.DataFrame, cells: pd.DataFrame, smallest_effect: float
) -> TextTable:
    """Return each cell's difference from its baseline: a row per cell, a column per benchmark.

    `differences` is `seeds.differences` of one metric; `cells` is `cells_frame` and gives the order
    of the rows; `smallest_effect`, for the legend, is the argument that `seeds.differences` had.
    """
    labels = dict(zip(cells["cell"], cells["label"], strict=True))
    metric = differences["metric"].iloc[0] if len(differences) else "top1"
    benchmarks = benchmarks_of(differences)
    found = {(row.cell, row.benchmark): row for row in differences.itertuples()}
    against = dict(zip(differences["cell"], differences["baseline"], strict=True))
    most = differences["n"].max() if len(differences) else 0
    rows = [
        [labels[cell], labels.get(against[cell], against[cell])]
        + [_difference_text(found.get((cell, name)), most) for name in benchmarks]
        for cell in labels
        if cell in against
    ]
    data = differences.assign(
        label=differences["cell"].map(labels), baseline_label=differences["baseline"].map(labels)
    )
    return TextTable(
        f"Difference in {metric_title(metric)}, paired by seed",
        ["cell", "against", *benchmarks],
        rows,
        _legend(set(differences["verdict"]), most, smallest_effect),
        2,
        data=data,
    )


def _difference_text(row: Any, most: int) -> str:
    """Return `+1.8 [0.9, 2.7] *`, with its n if that is less than the table's."""
    if row is None or row.n == 0:
        return MISSING
    text = interval_text(row.difference, row.low, row.high, row.metric, "+")
    mark = _VERDICTS.get(row.verdict, ("", ""))[0]
    return text + (f" {mark}" if mark else "") + (f" (n={row.n})" if row.n != most else "")


# Verdict of `seeds.differences` to its mark and meaning, in the order of `ranking.VERDICTS`.
_VERDICTS = {
    "different": ("*", "different (p < 0.05 after Holm's correction over all comparisons)"),
    "alike": ("≈", "alike (not different, and the interval lies within ±{smallest_effect:g})"),
    "open": ("", "open (no difference is established)"),
    "single": ("", "single (one common seed, so no interval)"),
    "undefined": ("?", "a value is not a number"),
}


def _legend(verdicts: set[str], most: int, smallest_effect: float) -> str:
    legend = [
        f"{mark or 'no mark'}: {meaning.format(smallest_effect=smallest_effect)}"
        for name, (mark, meaning) in _VERDICTS.items()
        if name in verdicts
    ]
    seeds = f"n = {most} common seeds unless another n is given. " if most else ""
    marks = f"Marks: {'; '.join(legend)}." if legend else ""
    return f"Brackets: 95 % t interval. {seeds}{marks}".rstrip()
