"""Phrases of the report: numbers, signs, lists, p-values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from densevit.results.tables.format import MINUS, decimals
from densevit.utils.console import count

MOST_NAMED = 4  # cells or runs that a sentence names before it counts the rest
MOST_SETS = 3  # test sets that a sentence names for each of them
SMALLEST_P = 0.001
MOST_SEEDS = 200  # no sweep has more, so "needs 5000 more seeds" would help nobody


def listed_sets(sets: Sequence[str], most: int = MOST_SETS) -> str:
    """Return the first few test sets, and how many others there are."""
    more = len(sets) - most
    return ", ".join(sets[:most]) + (f" and {count(more, 'other set')}" if more > 0 else "")


def p_phrase(p: float) -> str:
    """Return `p = 0.004` or `p < 0.001`; p is never rounded to zero."""
    if math.isnan(p):
        return "p unknown"
    if p < SMALLEST_P:
        return f"p < {SMALLEST_P}"
    decimals = 3 if p < 0.0995 else 2
    return f"p = {p:.{decimals}f}"


def signed(value: float, decimals: int = 1) -> str:
    """Return `+1.8`, `−0.4` or `0.0`, with a minus sign instead of a hyphen."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def bracket(low: float, high: float, decimals: int = 1) -> str:
    """Return `[−0.2, 0.9]`."""
    return "[" + ", ".join(signed(v, decimals).removeprefix("+") for v in (low, high)) + "]"


def listed(texts: Iterable[str], most: int = MOST_NAMED) -> str:
    """Return the first few texts, and how many more there are."""
    texts = list(texts)
    more = len(texts) - most
    return "; ".join(texts[:most]) + (f"; and {more} more" if more > 0 else "")


def difference_text(row: Any) -> str:
    """Return the difference and interval of a row of `seeds.differences`: `+1.8 [0.9, 2.7]`."""
    decimals = decimals_for(row.metric, row.difference, row.low, row.high)
    return f"{signed(row.difference, decimals)} {bracket(row.low, row.high, decimals)}"


def decimals_for(metric: str, *values: float) -> int:
    """Return the metric's number of decimals, or one more if a value would read as zero."""
    places = decimals(metric)
    small = [abs(v) for v in values if math.isfinite(v) and v != 0]
    if small and min(small) < 0.5 * 10**-places:
        return places + 1
    return places


def with_unit(number: float | str, metric: str) -> str:
    """Return `1.0 points` for percentages; other metrics have no unit."""
    if not isinstance(number, str):
        number = f"{number:.1f}" if round(number, 1) == number else f"{number:g}"
    return number if metric == "nll" else f"{number} points"
