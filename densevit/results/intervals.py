"""Every interval that a report has computed, as tables of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from densevit.results.findings import Findings
from densevit.results.resampled import Interval, Key
from densevit.results.stats import iqm

MANY = 8  # seeds from which on the middle half of them is worth a mean of its own


def of_cells(found: Findings) -> pd.DataFrame:
    """A row a cell and test set, of top-1: mean, std and t interval (`stats.summary`); the interval
    over seeds and pictures (`samples.interval`); and of `MANY` seeds or more, in cells that are
    shown, the interquartile mean with its interval (`stats.iqm`)."""
    table = found.means.drop(columns="metric")
    table.insert(1, "label", table["cell"].map(found.labels))
    table = _with_pictures(table, found.pictures.cells)
    top1 = found.frame[(found.frame["metric"] == "top1") & found.frame["cell"].isin(found.shown)]
    middle = {
        key: iqm(values)
        for key, values in top1.groupby(["cell", "benchmark"])["value"]
        if len(values) >= MANY
    }
    return _with(table, middle, ("iqm", "iqm_low", "iqm_high"))


def of_differences(found: Findings) -> pd.DataFrame:
    """`stats.differences`, and the intervals over seeds and pictures (`samples.difference`)."""
    return _with_pictures(found.differences, found.pictures.differences)


def _with_pictures(table: pd.DataFrame, intervals: Mapping[Key, Interval]) -> pd.DataFrame:
    names = ("_value", "pictures_low", "pictures_high")
    return _with(table, intervals, names).drop(columns="_value")


def _with(
    table: pd.DataFrame, intervals: Mapping[Key, Interval], names: tuple[str, str, str]
) -> pd.DataFrame:
    keys = zip(table["cell"], table["benchmark"], strict=True)
    values = [intervals.get(key, (math.nan,) * 3) for key in keys]
    added = pd.DataFrame(values, columns=list(names), index=table.index, dtype=float)
    return pd.concat([table, added], axis=1)
