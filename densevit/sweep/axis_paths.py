"""Resolve the relative paths in all sections of a sweep file: they are relative to the file."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densevit.config.paths import absolute_paths
from densevit.sweep.spec import Settings, SweepSpec


def with_absolute_paths(spec: SweepSpec, folder: Path) -> SweepSpec:
    """Return the sweep with absolute paths on its axes and in its rules; `fixed` is a layer."""
    update: dict[str, Any] = {
        "grid": _axes(spec.grid, folder),
        "zip": [_axes(group, folder) for group in spec.zip],
        "include": [absolute_paths(extra, folder) for extra in spec.include],
        "exclude": [
            rule.model_copy(update={"where": absolute_where(rule.where, folder)})
            for rule in spec.exclude
        ],
        "resources": spec.resources.model_copy(
            update={
                "when": [
                    rule.model_copy(update={"where": absolute_where(rule.where, folder)})
                    for rule in spec.resources.when
                ]
            }
        ),
    }
    if spec.baseline is not None:
        update["baseline"] = absolute_where(spec.baseline, folder)
    if spec.search is not None:
        space = {
            name: {kind: _values(name, values, folder) for kind, values in given.items()}
            for name, given in spec.search.space.items()
        }
        update["search"] = spec.search.model_copy(update={"space": space})
    return spec.model_copy(update=update)


def absolute_where(where: Mapping[str, Any], folder: Path) -> Settings:
    """Resolve the paths among wanted values; of a pattern (see `spec.matches`) its folder."""
    return {
        name: [_wanted(name, each, folder) for each in value]
        if isinstance(value, list)
        else _wanted(name, value, folder)
        for name, value in where.items()
    }


def _wanted(name: str, value: Any, folder: Path) -> Any:
    absolute = _values(name, [value], folder)[0]
    if absolute == value or not isinstance(value, str):
        return absolute
    if not glob.has_magic(value):
        return glob.escape(absolute)
    # `*.pt` fits the end of any path already.
    return value if value[0] == "*" else os.path.join(glob.escape(os.path.abspath(folder)), value)  # noqa: PTH100, PTH118


def _axes(axes: Mapping[str, list[Any]], folder: Path) -> dict[str, list[Any]]:
    return {name: _values(name, values, folder) for name, values in axes.items()}


def _values(name: str, values: list[Any], folder: Path) -> list[Any]:
    return [absolute_paths({name: value}, folder)[name] for value in values]
