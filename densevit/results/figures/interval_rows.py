"""Differences with their intervals, one per row, for the forest plot and marginal effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from densevit.results.figures.layout import row_axes, write_in_row
from densevit.results.figures.style import FAINT, INK, Style

PLAIN = Style(INK, "o", "-")  # of a thing that needs no distinction


class Row(NamedTuple):
    """A difference and its interval (NaN: none) at height `y`; filled if it is established."""

    y: float
    value: float
    low: float
    high: float
    style: Style
    filled: bool


def interval_notes(smallest_effect: float | None) -> list[str]:
    """Return sentences that explain the marks of `draw_rows`."""
    texts = ["Lines: 95 % intervals. Filled: p < 0.05 (Holm)."]
    return texts + ([f"Gray: ±{smallest_effect:g}."] if smallest_effect else [])


def limits(rows: Sequence[Row], smallest_effect: float | None) -> tuple[float, float]:
    """Return limits that hold zero, every difference, and intervals as far as they are not extreme.

    Two seeds have intervals of twelve standard errors; one of these must not shrink the others to
    dots. An interval that exceeds the axis ends in an arrow.
    """
    effect = smallest_effect or 0.0
    values = [row.value for row in rows if math.isfinite(row.value)]
    ends = np.array([e for row in rows for e in (row.low, row.high) if math.isfinite(e)])
    around = max([abs(v) for v in values] + [abs(effect)])
    usual = float(np.quantile(np.abs(ends), 0.5, method="lower")) if len(ends) else 0.0
    most = max(3 * around, 1.5 * usual)
    shown = [*values, *ends.clip(-most, most).tolist(), 0.0, -effect, effect]
    low, high = min(shown), max(shown)
    edge = 0.06 * (high - low) or 0.5
    return low - edge, high + edge


def draw_rows(
    axes: Axes, rows: Sequence[Row], xlim: tuple[float, float], smallest_effect: float | None
) -> None:
    """Draw rows, the line of no difference, and the band of differences below `smallest_effect`."""
    low, high = xlim
    axes.set_xlim(low, high)
    row_axes(axes, 4)
    if smallest_effect:
        axes.axvspan(-smallest_effect, smallest_effect, color="#f0f0f0", linewidth=0, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.7, zorder=1)
    for row in rows:
        color = row.style.color
        if not math.isfinite(row.value):
            write_in_row(axes, row.y, "not a number", color if color != INK else FAINT)
            continue
        _draw_interval(axes, row, low, high)
        axes.plot(
            [row.value], [row.y], linestyle="", marker=row.style.marker, markersize=4.2, zorder=4,
            markerfacecolor=color if row.filled else "white", markeredgecolor=color,
            markeredgewidth=0.8, clip_on=False,
        )  # fmt: skip


def _draw_interval(axes: Axes, row: Row, low: float, high: float) -> None:
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return
    color = row.style.color
    axes.plot([row.low, row.high], [row.y, row.y], color=color, linewidth=1.0, zorder=3)
    for end, edge, arrow in ((row.low, low, "<"), (row.high, high, ">")):
        if not low <= end <= high:
            axes.plot(
                [edge], [row.y], linestyle="", marker=arrow, markersize=3.5, clip_on=False,
                color=color, markeredgewidth=0, zorder=3,
            )  # fmt: skip
