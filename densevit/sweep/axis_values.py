"""The values of an axis that a sweep file gives by a rule: range, linspace or logspace."""

from __future__ import annotations

import math
from typing import Any

from densevit.config.run_config import FIELDS
from densevit.utils.errors import UserError, nearest

RULES = {
    "range": "[START, STOP] or [START, STOP, STEP]",
    "linspace": "[FIRST, LAST, COUNT]",
    "logspace": "[FIRST, LAST, COUNT], both above 0",
}
MOST_VALUES = 10_000


def listed_axes(section: object, source: str) -> object:
    """Return a grid, or a group of `zip`, with the values of its axes as lists.

    As in Python, a range ends before STOP. linspace and logspace contain FIRST and LAST, with equal
    differences or equal ratios between COUNT values, rounded to what the distance between
    neighbors requires; those of a whole field are whole numbers.
    Errors: `UserError` that begins with `source`, the file and the section.
    """
    if not isinstance(section, dict):
        return section
    return {name: _listed(name, given, f"{source}.{name}") for name, given in section.items()}


def _listed(name: str, given: object, source: str) -> object:
    if given is None:  # its values have been commented out
        return []
    if not isinstance(given, dict) or name not in FIELDS:
        return given
    rule = next(iter(given), "")
    if len(given) != 1 or rule not in RULES:
        raise UserError(f"{source}: must be a list or one rule: {', '.join(RULES)}; "
                        f"{nearest(rule, RULES)}")  # fmt: skip
    kind = FIELDS[name].annotation
    if kind not in (int, float):
        raise UserError(f"{source}.{rule}: is for numbers, and {name} is none; list its values")
    values = _values(rule, given[rule])
    if values is None:
        raise UserError(f"{source}.{rule}: {given[rule]} must be {RULES[rule]}")
    if kind is int and rule != "range":
        values = [round(value) for value in values]
    if not 0 < len(values) <= MOST_VALUES or len(set(values)) < len(values):
        raise UserError(
            f"{source}.{rule}: {given[rule]} has {len(set(values))} different values; wanted are "
            f"from 1 to {MOST_VALUES}, each once"
        )
    return values


def _values(rule: str, given: object) -> list[float] | None:
    """Return the values of a rule, None if its arguments are not what it takes."""
    if not isinstance(given, list) or not all(map(_is_number, given)):
        return None
    if rule == "range":
        return _range(*given) if len(given) in (2, 3) else None
    if len(given) != 3 or given[0] == given[1] or not 2 <= given[2] <= MOST_VALUES:
        return None
    first, last, count = given
    if not isinstance(count, int) or (rule == "logspace" and min(first, last) <= 0):
        return None
    return [first, *_between(rule, first, last, count), last]


def _range(start: float, stop: float, step: float = 1) -> list[float] | None:
    if step == 0 or (stop - start) / step > MOST_VALUES:
        return None
    # Counted with a margin: 0.1 + 0.1 + 0.1 is more than 0.3.
    values = (start + i * step for i in range(math.ceil((stop - start) / step - 1e-9)))
    return [value if isinstance(value, int) else float(f"{value:.12g}") for value in values]


def _between(rule: str, first: float, last: float, count: int) -> list[float]:
    """Return the values between the first and the last, without digits that mean nothing."""
    parts = [i / (count - 1) for i in range(1, count - 1)]
    if rule == "linspace":
        step = abs(last - first) / (count - 1)
        decimals = 2 - math.floor(math.log10(step))
        return [round(first + (last - first) * part, decimals) for part in parts]
    step = min(1.0, abs(math.log(last / first)) / (count - 1))  # the relative difference, roughly
    digits = 4 - math.floor(math.log10(step))
    return [float(f"{first * (last / first) ** part:.{digits}g}") for part in parts]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
