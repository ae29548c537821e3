"""A validator of records that are read from YAML."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def drop_empty(cls: type[BaseModel], given: Any) -> Any:
    """Drop the keys without a value: after its lines have been commented out, a key means its
    default. A `model_validator` for `mode="before"`."""
    if not isinstance(given, dict):
        return given
    fields = cls.model_fields
    return {
        key: value
        for key, value in given.items()
        if value is not None or key not in fields or fields[key].is_required()
    }
