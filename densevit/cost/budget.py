"""Budgets in GPU-hours, and a cost estimate as text or as a record."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from densevit.cost.estimate import Estimate
from densevit.cost.speeds import Range
from densevit.utils.console import count
from densevit.utils.errors import UserError


def parse_budget(text: str) -> float:
    """Return the number in `200gpuh`. Errors: `UserError` that names the valid form."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?gpuh", text.strip())
    if found is None or not float(found[1]) > 0:
        raise UserError(
            f"--budget: {text!r} must be a number of GPU-hours above 0, such as 200gpuh or 12.5gpuh"
        )
    return float(found[1])


def check_budget(estimated: Estimate, budget: float) -> None:
    """Check that the remaining runs cost no more than the budget, given in the estimate's unit.

    Errors: `UserError` with both numbers.
    """
    needed = estimated.remaining
    if needed.central > budget:
        raise UserError(
            f"--budget: the {estimated.to_run} runs that are not finished would cost about "
            f"{_number(needed.central)} {estimated.unit} (up to {_number(needed.high)}), more than "
            f"the {_number(budget)} of the budget"
        )


def estimate_lines(estimated: Estimate) -> list[str]:
    """Return an estimate as lines for a terminal."""
    total = _cost(estimated.total, estimated.unit)
    lines = [f"estimated cost: {count(len(estimated.runs), 'run')}, {total}"]
    if estimated.to_run < len(estimated.runs):
        remaining = _cost(estimated.remaining, estimated.unit)
        lines.append(f"still to be spent: {count(estimated.to_run, 'run')}, {remaining}")
    low, central, high = (_duration(hours) for hours in estimated.wall_hours)
    lines.append(f"wall time: {central} ({low} to {high}), {estimated.throttle} at a time")
    for axis, shares in estimated.shares.items():
        values = ", ".join(f"{value} {100 * share:.0f} %" for value, share in shares.items())
        lines.append(f"share of {axis}: {values}")
    return [*lines, f"measured on {', '.join(estimated.devices)}"]


def estimate_record(estimated: Estimate) -> dict[str, Any]:
    """Return the fields of `Estimate` for JSON; a range is `{"low", "central", "high"}`."""
    return {
        **asdict(estimated),
        "devices": list(estimated.devices),
        "runs": {run_id: cost._asdict() for run_id, cost in estimated.runs.items()},
        **{k: getattr(estimated, k)._asdict() for k in ("total", "remaining", "wall_hours")},
    }


def _cost(cost: Range, unit: str) -> str:
    return f"{_number(cost.central)} {unit} ({_number(cost.low)} to {_number(cost.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
