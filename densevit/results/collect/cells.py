"""The cells of a sweep as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from densevit.sweep.cells import cell_values
from densevit.sweep.plan import Plan


def cells_frame(plan: Plan) -> pd.DataFrame:
    """Return one row per cell in the plan's order: cell (id), label, and the raw value of each
    axis, None where the axis does not apply."""
    rows = [
        {"cell": run.cell, "label": plan.label(run), **cell_values(run.config, plan.axes)}
        for run in plan.grid.cells
    ]
    frame = pd.DataFrame(rows)
    for axis in plan.axes:
        frame[axis] = as_given(row[axis] for row in rows)
    return frame


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std (n-1) and n over seeds, indexed by cell, benchmark and metric.

    pandas skips NaN, but a diverged seed must not vanish from its cell: it makes mean and std NaN.
    """
    groups = frame.groupby(["cell", "benchmark", "metric"], sort=False, observed=True)["value"]
    table = groups.agg(["mean", "std", "size", "count"])
    table.loc[table["size"] != table["count"], ["mean", "std"]] = math.nan
    return table.drop(columns="count").rename(columns={"size": "n"})


def as_given(values: Iterable[Any]) -> pd.Series:
    """Return a column of raw values, in which integers stay integers beside a None."""
    return pd.Series(list(values), dtype=object)


def as_written(values: Iterable[Any]) -> pd.Series:
    """Return a column of axis values for CSV; a mapping becomes JSON."""
    return as_given(json.dumps(v) if isinstance(v, dict) else v for v in values)
