"""All intervals of a report as tables of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from densevit.results.analysis import Findings
from densevit.results.stats.image_intervals import Interval, Key
from densevit.results.stats.ranking import image_rows
from densevit.results.stats.seeds import iqm

MANY = 8  # seeds needed for an interquartile mean


def of_cells(found: Findings) -> pd.DataFrame:
    """Return one row per cell and test set, for the main metric.

    It holds mean, std and t interval (`seeds.summary`); the interval over seeds and images
    (`bootstrap.interval`); and, for shown cells with `MANY` seeds or more, the interquartile mean
    with its interval (`seeds.iqm`).
    """
    table = found.means.drop(columns="metric")
    table.insert(1, "label", table["cell"].map(found.labels))
    table = _with_pictures(table, found.image_intervals.cells)
    rows = image_rows(found.frame)
    rows = rows[rows["cell"].isin(found.shown)]
    middle = {
        key: iqm(values)
        for key, values in rows.groupby(["cell", "benchmark"])["value"]
        if len(values) >= MANY
    }
    return _with(table, middle, ("iqm", "iqm_low", "iqm_high"))


def of_differences(found: Findings) -> pd.DataFrame:
    """Return `seeds.differences` with intervals over seeds and images (`bootstrap.difference`)."""
    return _with_pictures(found.differences, found.image_intervals.differences)


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
