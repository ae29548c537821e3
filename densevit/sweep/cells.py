"""Values and labels of grid cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def cell_label(
    config: RunConfig, axes: tuple[str, ...], short: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """Return a label for a cell: its values on the axes that apply to it.

    `short` holds, by axis, the `short_texts` of its values.
    """
    texts = [
        (short or {}).get(axis, {}).get(text := value_text(value), text)
        for axis, value in cell_values(config, axes).items()
        if value is not None
    ]
    return SEPARATOR.join(texts) or config.cl_mode


def short_texts(values: Iterable[Any]) -> dict[str, str]:
    """Return short texts for the values of an axis, by their `value_text`; no two are the same.

    Of absolute paths they have the last parts, of mappings the entries, that tell them apart.
    """
    given = {value_text(value): value for value in values}
    paths = [v for v in given.values() if isinstance(v, str) and v.startswith("/")]
    mappings = [v for v in given.values() if isinstance(v, dict)]
    found = {}
    for text, value in given.items():
        if isinstance(value, dict) and mappings[1:]:
            apart = {k: v for k, v in value.items() if any(_lacks(m, k, v) for m in mappings)}
            found[text] = value_text(apart)
        else:
            found[text] = _end(value, paths) if value in paths else text
    return found if len(set(found.values())) == len(found) else {text: text for text in given}


def _lacks(mapping: dict[str, Any], key: str, value: Any) -> bool:
    return key not in mapping or value_text({key: mapping[key]}) != value_text({key: value})


def _end(path: str, paths: Sequence[str]) -> str:
    """Return the fewest last parts of a path that no other one ends with."""
    parts = path.split("/")
    ends = ("/".join(parts[-n:]) for n in range(1, len(parts)))
    return next((e for e in ends if sum(f"/{e}" == p[-len(e) - 1 :] for p in paths) == 1), path)


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
