"""From YAML files and flags to a RunConfig, with errors that point to the place of a mistake."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from densevit import yamlfile
from densevit.config import FIELDS, TEMPERATURE_RANGE, BenchmarkFolder, RunConfig
from densevit.errors import UserError, nearest


class Layer(NamedTuple):
    """Settings from one place; `source` names the place in errors ("file" or "file: section")."""

    source: str
    settings: Mapping[str, Any]


def build(layers: Sequence[Layer]) -> RunConfig:
    """The run that results from layers of settings, later ones over earlier ones.

    Errors: `UserError` naming the place, the key and the nearest valid name or the valid range.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer.settings)
    try:
        config = RunConfig(**merged)
    except ValidationError as error:
        # An unknown key is told first: a misspelt name often causes the rest. Then a range:
        # a number where there are words as well is taken for a number.
        first = {"extra_forbidden": 0, "greater_than_equal": 1}
        problems = sorted(error.errors(), key=lambda p: first.get(p["type"], 2))
        key = str(problems[0]["loc"][0])
        source = source_of(layers, key)
        known = FIELDS if len(problems[0]["loc"]) == 1 else BenchmarkFolder.model_fields
        raise UserError(f"{source}: {explain(problems[0], known)}") from None
    if config.warmup_epochs >= config.epochs and config.warmup_epochs > 0:
        source = source_of(layers, "epochs" if "epochs" in merged else "warmup_epochs")
        raise UserError(
            f"{source}: warmup_epochs: {config.warmup_epochs} leaves nothing of epochs: "
            f"{config.epochs}; it must be smaller"
        )
    if config.batch_size % config.grad_accumulation:
        source = source_of(layers, "grad_accumulation")
        raise UserError(
            f"{source}: grad_accumulation: {config.grad_accumulation} does not divide batch_size: "
            f"{config.batch_size}"
        )
    if config.pretrained and config.init_checkpoint:
        source = source_of(layers, "init_checkpoint")
        raise UserError(f"{source}: init_checkpoint: pretrained gives the first weights already")
    low, high = TEMPERATURE_RANGE
    if config.learnable_temp and not low <= config.temperature <= high:
        source = source_of(layers, "temperature")
        raise UserError(
            f"{source}: temperature: {config.temperature} is out of range; with learnable_temp "
            f"it must be at least {low} and at most {high}"
        )
    return config


def source_of(layers: Sequence[Layer], key: str) -> str:
    """The place that gave a key its value, for errors; the last layer if none did."""
    given = [layer.source for layer in layers if key in layer.settings]
    return given[-1] if given else layers[-1].source


def read_layers(path: Path) -> list[Layer]:
    """The layers of an experiment file: its `base` chain, deepest first, then the file itself.

    Relative paths (`base`, `data_dir`, `benchmarks`, ...) count from the file that names them.
    """
    layers: list[Layer] = []
    chain: list[Path] = []
    current: Path | None = path
    while current is not None:
        real = current.resolve()
        if real in chain:
            names = " -> ".join(p.name for p in [*chain, real])
            raise UserError(f"{chain[-1]}: base: the files name each other in a circle: {names}")
        chain.append(real)
        settings = yamlfile.load(current)
        base = settings.pop("base", None)
        layers.append(Layer(str(current), absolute_paths(settings, current.parent)))
        current = base_path(base, current) if base is not None else None
    return layers[::-1]


def base_path(base: object, file: Path) -> Path:
    """The file that `base:` names, counted from the file that names it."""
    if not isinstance(base, str) or not base:
        raise UserError(f"{file}: base: must be the path of a YAML file, not {base!r}")
    target = file.parent / base
    if not target.is_file():
        raise UserError(f"{file}: base: {base}: no such file ({target})")
    return target


def absolute_paths(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings whose relative paths (`data_dir`, `init_checkpoint`, `masks`, `benchmarks`) are
    counted from `folder`.

    Environment variables and `~` are replaced; a path that starts with a variable that is not set
    stays as written, since a plan needs no data.
    """
    settings = dict(settings)
    for name in ("data_dir", "init_checkpoint", "masks"):
        if isinstance(settings.get(name), str) and settings[name] != "shapes":
            settings[name] = _absolute(settings[name], folder)
    benchmarks = settings.get("benchmarks")
    if isinstance(benchmarks, dict):
        settings["benchmarks"] = {n: _absolute_set(v, folder) for n, v in benchmarks.items()}
    return settings


def _absolute_set(given: Any, folder: Path) -> Any:
    """A benchmark's path, or its mapping, in which `classes` may name a file."""
    if isinstance(given, dict):
        words = ("folder", "imagenet")
        return {
            key: _absolute(value, folder)
            if isinstance(value, str) and value not in words
            else value
            for key, value in given.items()
        }
    return _absolute(given, folder) if isinstance(given, str) else given


def _absolute(path: str, folder: Path) -> str:
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111
    return expanded if expanded.startswith("$") else os.path.abspath(folder / expanded)  # noqa: PTH100


def explain(problem: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """One of pydantic's error records as `key: what is wrong and what would be right`."""
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    parts = [str(p) for p in problem["loc"]]
    key = ".".join(p for p in parts if re.match(r"^\w[\w.-]*$", p) and p not in _PYDANTIC_WORDS)
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {nearest(parts[-1], fields)}"
    if kind == "missing":
        return f"{key}: is missing"
    if kind == "literal_error":
        valid = re.findall(r"'([^']*)'", context["expected"])
        other = " or a whole number" if key == "query_patches" else ""
        return f"{key}: {_shown(value)} is not valid{other}; {nearest(value, valid)}"
    if kind == "string_pattern_mismatch":
        return f"{key}: {_shown(value)} must be a name of letters, digits, '.', '_' and '-'"
    limits = {
        "greater_than": "must be greater than {gt}",
        "greater_than_equal": "must be at least {ge}",
        "less_than": "must be less than {lt}",
        "less_than_equal": "must be at most {le}",
    }
    if kind in limits:
        return f"{key}: {_shown(value)} is out of range; it {limits[kind].format(**context)}"
    types = {
        "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
        "bool_type": "true or false", "string_type": "text", "dict_type": "a mapping",
        "list_type": "a list", "finite_number": "a finite number",
    }  # fmt: skip
    if kind in types:
        return f"{key}: {_shown(value)} must be {types[kind]}"
    return f"{key}: {_shown(value)}: {problem['msg']}"


# Parts of an error's location that name pydantic's branches and not the user's keys.
_PYDANTIC_WORDS = {"int", "float", "str", "list", "dict", "function-before", "[key]"}
_PYDANTIC_WORDS |= {"BenchmarkFolder"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
