"""Resolve the relative paths of a config file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densevit.config.evaluation_names import DRAWN_TESTS
from densevit.utils.errors import UserError


def base_paths(base: object, file: Path) -> list[Path]:
    """Return the files that `base:` names, relative to the file that contains it."""
    given = base if isinstance(base, list) else [] if base is None else [base]
    return [_base_path(each, file) for each in given]


def _base_path(base: object, file: Path) -> Path:
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{file}: base: must be the path of a YAML file, or a list of them, not {base!r}"
        )
    if (file.parent / base).is_file():
        return file.parent / base
    expanded = os.path.expanduser(os.path.expandvars(base))  # noqa: PTH111
    if unset := re.search(r"\$(\w+|\{\w+\})", expanded):
        raise UserError(f"{file}: base: {base}: the variable {unset[0]} is not set")
    target = file.parent / expanded
    if not target.is_file():
        raise UserError(f"{file}: base: {base}: no such file ({target})")
    return target


def absolute_paths(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve `data_dir`, `init_checkpoint`, `masks` and `benchmarks` relative to `folder`.

    Environment variables and `~` are expanded; a path that starts with an unset variable stays as
    written, since a plan needs no data.
    """
    settings = dict(settings)
    for name in ("data_dir", "init_checkpoint", "masks"):
        if isinstance(settings.get(name), str) and settings[name] not in DRAWN_TESTS:
            settings[name] = _absolute(settings[name], folder)
    benchmarks = settings.get("benchmarks")
    if isinstance(benchmarks, dict):
        settings["benchmarks"] = {n: _absolute_set(v, folder) for n, v in benchmarks.items()}
    return settings


def _absolute_set(given: Any, folder: Path) -> Any:
    """Resolve a benchmark's path, or its mapping, in which `classes` may name a file."""
    if isinstance(given, dict):
        return {
            key: _absolute(value, folder)
            if key != "label_column"
            and isinstance(value, str)
            and value not in ("folder", "imagenet")
            else value
            for key, value in given.items()
        }
    return _absolute(given, folder) if isinstance(given, str) else given


def _absolute(path: str, folder: Path) -> str:
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111
    return expanded if expanded.startswith("$") else os.path.abspath(folder / expanded)  # noqa: PTH100
