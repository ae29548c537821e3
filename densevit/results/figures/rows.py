"""Differences with their intervals, a row each: what the forest plot and marginal effects share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from densevit.results.figures.style import FAINT, INK, Look, bare, said


class Row(NamedTuple):
    """A difference and its interval (NaN: there is none) at a height, filled where decided."""

    y: float
    value: float
    low: float
    high: float
    look: Look
    filled: bool


def reach(rows: Sequence[Row], wanted: float | None) -> tuple[float, float]:
    """What the axis holds: zero, every difference, and of the intervals what is not extreme.

    Two seeds have intervals of twelve standard errors: one of these must not shrink the others to
    dots. What goes beyond the axis ends in an arrow.
    """
    values = [row.value for row in rows if math.isfinite(row.value)]
    ends = np.array([e for row in rows for e in (row.low, row.high) if math.isfinite(e)])
    around = max([abs(v) for v in values] + [abs(wanted or 0.0)])
    usual = float(np.quantile(np.abs(ends), 0.5, method="lower")) if len(ends) else 0.0
    most = max(3 * around, 1.5 * usual)
    shown = [*values, *ends.clip(-most, most), 0.0, *((-wanted, wanted) if wanted else ())]
    low, high = min(shown), max(shown)
    edge = 0.06 * (high - low) or 0.5
    return low - edge, high + edge


def draw_rows(
    axes: Axes, rows: Sequence[Row], limits: tuple[float, float], wanted: float | None
) -> None:
    """Draw rows, the line of no difference, and the band of differences under `wanted`."""
    low, high = limits
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.5)
    bare(axes, "left")
    axes.tick_params(axis="y", length=0)
    if wanted:
        axes.axvspan(-wanted, wanted, color="#f0f0f0", linewidth=0, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.7, zorder=1)
    for row in rows:
        if not math.isfinite(row.value):
            said(axes, row.y, "no number", row.look.color if row.look.color != INK else FAINT)
            continue
        _interval(axes, row, low, high)
        axes.plot(
            [row.value], [row.y], linestyle="", marker=row.look.marker, markersize=4.2, zorder=4,
            markerfacecolor=row.look.color if row.filled else "white",
            markeredgecolor=row.look.color, markeredgewidth=0.8, clip_on=False,
        )  # fmt: skip


def _interval(axes: Axes, row: Row, low: float, high: float) -> None:
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return
    axes.plot([row.low, row.high], [row.y, row.y], color=row.look.color, linewidth=1.0, zorder=3)
    for end, edge, arrow in ((row.low, low, "<"), (row.high, high, ">")):
        if not low <= end <= high:
            axes.plot(
                [edge], [row.y], linestyle="", marker=arrow, markersize=3.5, clip_on=False,
                color=row.look.color, markeredgewidth=0, zorder=3,
            )  # fmt: skip
