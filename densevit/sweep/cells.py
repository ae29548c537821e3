"""Values and labels of grid cells."""

from __future__ import annotations

from typing import Any

from densevit.config.loss_modes import inapplicable
from densevit.config.run_config import RunConfig
from densevit.config.yaml_file import is_plain_text

NULL = "null"  # as in YAML
SEPARATOR = " · "  # of the values in a label


def cell_values(config: RunConfig, axes: tuple[str, ...]) -> dict[str, Any]:
    """Return a cell's value on each axis: None where the axis does not apply, and `NULL` for a
    value that is itself None (`init_checkpoint: [null, w.pt]`)."""
    found: dict[str, Any] = {}
    unused = inapplicable(config)
    for name in axes:
        value = getattr(config, name)
        found[name] = None if name in unused else NULL if value is None else value
    return found


def cell_label(config: RunConfig, axes: tuple[str, ...]) -> str:
    """Return a label for a cell: its values on the axes that apply to it."""
    values = [v for v in cell_values(config, axes).values() if v is not None]
    return SEPARATOR.join(value_text(value) for value in values) or config.cl_mode


def value_text(value: Any) -> str:
    """Format a field's value as in YAML; None (does not apply) becomes an en dash.

    Different values have different texts: two cells never read alike.
    """
    if isinstance(value, dict):
        return " ".join(f"{k}={_within(v)}" for k, v in value.items()) or "{}"
    return "–" if value is None else _scalar(value)


def _within(value: Any) -> str:
    """Format a value within a mapping, where text that could be read otherwise has quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_within(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_within, value)) + "]"
    if isinstance(value, str) and (not is_plain_text(value) or set(value) & set(" =,[]{}")):
        return repr(value)
    return NULL if value is None else _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"  # 6 digits
        return short if float(short) == value else repr(float(value))
    return str(value)
