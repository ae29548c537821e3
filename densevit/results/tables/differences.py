"""The table of differences from the baseline."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd

from densevit.results.tables.format import benchmarks_of, interval_text, metric_title
from densevit.results.tables.table import MISSING, TextTable
from densevit.results.tables.verdict_signs import sign_legend, verdict_sign


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
    mark = verdict_sign(row)
    return text + (f" {mark}" if mark else "") + (f" (n={row.n})" if row.n != most else "")


def _legend(verdicts: Collection[str], most: int, smallest_effect: float) -> str:
    seeds = f"n = {most} common seeds unless another n is given. " if most else ""
    return f"Brackets: 95 % t interval. {seeds}{sign_legend(verdicts, smallest_effect)}".rstrip()
