"""The table of marginal effects."""

from __future__ import annotations

import pandas as pd

from densevit.results.collect.cells import as_written
from densevit.results.tables.format import interval_text, metric_title, p_text
from densevit.results.tables.table import TextTable
from densevit.sweep.cells import value_text


def marginal_table(marginals: pd.DataFrame, metric: str = "top1") -> TextTable:
    """Return the effect of each axis' levels over the grid.

    `marginals` holds rows of `marginals.marginals`, with a column `benchmark`.
    """
    rows = [
        [
            row["benchmark"], row["axis"], value_text(row["level"]),
            value_text(row["reference"]), str(row["contexts"]), str(row["n"]),
            interval_text(row["difference"], row["low"], row["high"], metric, "+"),
            p_text(row["p_holm"]),
        ]
        for row in marginals.to_dict("records")
    ]  # fmt: skip
    return TextTable(
        f"Effect of each axis on {metric_title(metric)}",
        ["benchmark", "axis", "level", "against", "contexts", "n", "difference", "p"],
        rows,
        "Mean over the contexts: the settings of all other axes at which both levels were run. "
        "Brackets: 95 % interval. p after Holm's correction over all axes and test sets.",
        4,
        data=marginals.assign(
            level=as_written(marginals["level"]), reference=as_written(marginals["reference"])
        ),
    )
