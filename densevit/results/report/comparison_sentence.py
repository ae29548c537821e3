"""Sentences that describe the difference between two cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from densevit.results.report.phrases import (
    MOST_SEEDS,
    bracket,
    decimals_for,
    p_phrase,
    signed,
    with_unit,
)
from densevit.results.stats.ranking import ranked
from densevit.utils.console import count


def sentences(
    differences: pd.DataFrame,
    names: Mapping[str, str],
    smallest_effect: float = 1.0,
    over_images: Mapping[tuple[str, str], tuple[float, float, float]] | None = None,
    most: int | None = None,
) -> list[str]:
    """Return a sentence for each row of `seeds.differences`, established differences first.

    At most `most` sentences. `names` are `contrast_names.contrasts`. `smallest_effect` is the
    difference (in the metric's unit) that the verdicts were computed with. `over_images` maps a
    (cell, benchmark) with one common seed to difference, low and high over images alone
    (`bootstrap.difference`).
    """
    rows = ranked(differences).head(most or len(differences))
    return [
        _sentence(row, names, smallest_effect, over_images or {})
        for row in rows.itertuples(index=False)
    ]


def _sentence(
    row: Any,
    names: Mapping[str, str],
    smallest_effect: float,
    over_images: Mapping[tuple[str, str], tuple[float, float, float]],
) -> str:
    start = f"{names.get(row.cell, row.cell)} on {row.benchmark}: "
    if row.n == 0:
        return start + "no seed has finished in both cells yet."
    if math.isnan(row.difference):
        return f"{start}not a number in at least one of {row.n} common seeds."
    decimals = decimals_for(row.metric, row.difference, row.low, row.high)
    difference = with_unit(signed(row.difference, decimals), row.metric)
    if row.n < 2 or row.verdict == "single":
        return start + difference + _one_seed(row, over_images)
    interval = f"95 % CI {bracket(row.low, row.high, decimals)}"
    verdict = _verdict(row, smallest_effect)
    return f"{start}{difference}, {interval}, {row.n} seeds, paired: {verdict}."


def _one_seed(row: Any, over_images: Mapping[tuple[str, str], tuple[float, float, float]]) -> str:
    """Return the text for a row with one seed: an interval over images, none over seeds."""
    text = "; one seed supports no conclusion across seeds"
    found = over_images.get((row.cell, row.benchmark))
    if found is None:
        return text + "."
    _, low, high = found
    return f"{text}; over images alone {bracket(low, high, decimals_for(row.metric, low, high))}."


def _verdict(row: Any, smallest_effect: float) -> str:
    if row.std == 0 and row.difference == 0:
        return "equal in every seed"
    if row.verdict == "established":
        return f"a difference is established (Holm-corrected {p_phrase(row.p_holm)})"
    text = "no difference is established"
    # The row's own interval excludes zero; among many rows some do by chance.
    excludes_zero = row.low > 0 or row.high < 0
    if excludes_zero:
        p = p_phrase(row.p_holm)
        text += f", although the interval excludes zero (Holm-corrected {p})"
    if row.verdict == "equivalent":
        return f"{text}; with 95 % confidence it is under {_bound(row)}"
    return text if excludes_zero else text + _seeds_needed(row, smallest_effect)


def _bound(row: Any) -> str:
    """Return the interval end of larger magnitude, rounded up: the sentence must not overclaim."""
    decimals = decimals_for(row.metric, row.low, row.high)
    scale = 10**decimals
    largest = math.ceil(max(abs(row.low), abs(row.high)) * scale - 1e-9) / scale
    return with_unit(f"{largest:.{decimals}f}", row.metric)


def _seeds_needed(row: Any, smallest_effect: float) -> str:
    target = with_unit(smallest_effect, row.metric)
    if row.seeds_needed is None or math.isnan(row.seeds_needed):
        return ""
    more = int(row.seeds_needed) - int(row.n)
    if more > MOST_SEEDS:
        return (
            f"; the seeds vary too much to detect a difference of {target} with fewer than "
            f"{MOST_SEEDS} of them"
        )
    if more > 0:
        return f"; detecting {target} with 80 % power takes {count(more, 'more seed')}"
    return f"; neither zero nor a difference of {target} is ruled out"
