"""The signs of verdicts, the same in every table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from densevit.results.tables.table import Tone

# In the order of `ranking.VERDICTS`.
_MEANINGS = {
    "established": "↑ ↓: established (p < 0.05 after Holm's correction for all comparisons)",
    "hint": "↑? ↓?: a hint, no evidence (p < 0.05 alone, but not after the correction)",
    "equivalent": "≈: equivalent (the 95 % interval lies within ±{smallest_effect:g})",
    "too noisy": "?: too noisy to say",
    "single": "no sign: one seed in common, no conclusion",
    "undefined": "nan: not a number in some seed",
}


def verdict_sign(row: Any) -> str:
    """Return the sign of a row of `seeds.differences`: ↑ ↓ ≈ ?, or an arrow and ? for a hint."""
    arrow = "↑" if row.difference > 0 else "↓"
    signs = {"established": arrow, "hint": arrow + "?", "equivalent": "≈", "too noisy": "?"}
    return signs.get(row.verdict, "")


def sign_legend(verdicts: Collection[str], smallest_effect: float) -> str:
    """Return the meaning of each sign that occurs."""
    meanings = [
        meaning.format(smallest_effect=smallest_effect)
        for verdict, meaning in _MEANINGS.items()
        if verdict in verdicts
    ]
    return "; ".join(meanings) + "." if meanings else ""


def verdict_tone(row: Any, lower_is_better: bool) -> Tone | None:
    """Return the color of a row's entry; none if it has no verdict."""
    if row.verdict in ("single", "undefined"):
        return None
    if row.verdict in ("equivalent", "too noisy"):
        return "equal" if row.verdict == "equivalent" else "noisy"
    better = (row.difference < 0) == lower_is_better
    if row.verdict == "hint":
        return "maybe better" if better else "maybe worse"
    return "better" if better else "worse"
