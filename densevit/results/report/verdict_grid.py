"""The grid of verdicts: one sign and one number for each comparison on each test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from densevit.results.report.phrases import signed
from densevit.results.tables.format import benchmarks_of, decimals, lower_is_better, metric_title
from densevit.results.tables.table import MISSING, TextTable
from densevit.results.tables.verdict_signs import sign_legend, verdict_sign, verdict_tone


def verdict_grid(
    differences: pd.DataFrame, names: Mapping[str, str], smallest_effect: float
) -> TextTable:
    """Return a row per comparison and a column per test set: `↑ +1.8`, `? −0.3`.

    `differences` is `seeds.differences` of one metric. `names` maps its cells to the names of their
    comparisons, and gives the order of the rows. `smallest_effect`, for the legend, is the argument
    that `seeds.differences` had.
    """
    benchmarks = benchmarks_of(differences)
    metric = str(differences["metric"].iloc[0]) if len(differences) else "top1"
    found = {(row.cell, row.benchmark): row for row in differences.itertuples(index=False)}
    present = set(differences["cell"])
    cells = [cell for cell in names if cell in present]
    rows = [[names[c], *(_text(found.get((c, b))) for b in benchmarks)] for c in cells]
    tones = {
        (i, j): tone
        for i, cell in enumerate(cells)
        for j, name in enumerate(benchmarks, start=1)
        if (row := found.get((cell, name))) is not None
        and (tone := verdict_tone(row, lower_is_better(metric))) is not None
    }
    return TextTable(
        f"Difference in {metric_title(metric)}, by verdict",
        ["comparison", *benchmarks],
        rows,
        sign_legend(set(differences["verdict"]), smallest_effect),
        tones=tones,
    )


def _text(row: Any) -> str:
    if row is None or row.n == 0:
        return MISSING
    if row.verdict == "undefined":
        return "nan"
    return f"{verdict_sign(row)} {signed(row.difference, decimals(row.metric))}".strip()
