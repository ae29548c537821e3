"""The main metric of a report, and the order of test sets and verdicts in it."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from densevit.config.evaluation_names import CLEAN
from densevit.config.probes import probes_by_name

# In the order in which reports list them.
VERDICTS = ("established", "hint", "equivalent", "too noisy", "single", "undefined")


def image_metric(frame: pd.DataFrame) -> str:
    """Return the main metric of whole images: top-1 or, if images show several classes, mAP."""
    measured = set(frame["metric"])
    return "map" if "map" in measured and "top1" not in measured else "top1"


def image_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the main metric of whole images."""
    return frame[frame["metric"] == image_metric(frame)]


def ranked(differences: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in the order of their importance: by verdict, then by size."""
    order = {verdict: place for place, verdict in enumerate(VERDICTS)}
    place = differences["verdict"].map(order)
    size = -differences["difference"].abs().fillna(0.0)
    keys = differences.assign(_place=place, _size=size)
    ordered = keys.sort_values(["_place", "_size"], kind="stable", na_position="last")
    return ordered.drop(columns=["_place", "_size"])


def shifted_only(benchmarks: Iterable[str]) -> list[str]:
    """Return the test sets that are neither clean ones nor probes."""
    return [name for name in dict.fromkeys(benchmarks) if name not in (*CLEAN, *probes_by_name())]
