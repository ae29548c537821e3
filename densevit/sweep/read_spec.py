"""Read and check a sweep file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from densevit.config import yaml_file
from densevit.config.error_messages import explain, hint_for
from densevit.config.paths import absolute_paths
from densevit.config.resolve import Layer, base_layers, merged
from densevit.config.run_config import FIELDS, RunConfig, is_execution
from densevit.sweep.axis_paths import with_absolute_paths
from densevit.sweep.axis_values import listed_axes
from densevit.sweep.overrides import override
from densevit.sweep.spec import (
    KINDS,
    NO_KEYS,
    EarlyStop,
    Exclusion,
    RaySettings,
    Resources,
    ResourcesWhen,
    Search,
    Settings,
    SweepResources,
    SweepSpec,
)
from densevit.utils.errors import UserError, nearest


def read_spec(path: Path, changes: Sequence[str] = ()) -> SweepSpec:
    """Read and check a sweep file, with the `changes` of a command line (`KEY=VALUE`).

    Errors: `UserError` naming the file, the key and the nearest valid name.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(
            f"{path}: is no file but a pipe, and a sweep is read again by later commands; write it "
            f"to a file"
        )
    text = yaml_file.read_text(path)
    data = yaml_file.parse(text, str(path))
    layers = base_layers(data.pop("base", None), path)
    for section in ("grid", "zip"):
        if section in data:
            data[section] = _listed(data[section], f"{path}: {section}")
    for taken in NO_KEYS:
        if taken in data:
            valid = [*_KEYS, "base"]
            raise UserError(f"{path}: {taken}: unknown key; {nearest(taken, valid)}")
    try:
        spec = SweepSpec(**data, file=path, layers=tuple(layers), text=text)
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
        raise UserError(f"{path}: {_explain(problems[0])}") from None
    _check_keys(spec)
    spec = with_absolute_paths(spec, path.parent)
    fixed = Layer(f"{path}: fixed", absolute_paths(spec.fixed, path.parent))
    spec = spec.model_copy(update={"layers": (*layers, fixed)})
    return _with_whole_mappings(override(spec, changes) if changes else spec)


def _listed(section: object, source: str) -> object:
    if isinstance(section, list):
        return [listed_axes(group, source) for group in section]
    return listed_axes(section, source)


def _with_whole_mappings(spec: SweepSpec) -> SweepSpec:
    """Return the sweep with the mappings that its rules look for as they are on an axis: merged
    with those that every cell starts from."""

    def whole(where: Settings) -> Settings:
        return {name: _whole(spec.layers, name, value) for name, value in where.items()}

    def changed(rule: Any) -> Any:
        return rule.model_copy(update={"where": whole(rule.where)})

    resources = {"when": [changed(rule) for rule in spec.resources.when]}
    return spec.model_copy(
        update={
            "exclude": [changed(rule) for rule in spec.exclude],
            "resources": spec.resources.model_copy(update=resources),
            "baseline": spec.baseline and whole(spec.baseline),
        }
    )


def _whole(layers: Sequence[Layer], name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(layers, name, each) for each in value]
    if not isinstance(value, dict):
        return value
    return merged([*layers, Layer("where", {name: value})])[name]


_SECTIONS: dict[Any, type[BaseModel]] = {
    "exclude": Exclusion, "resources": SweepResources, "ray": RaySettings, "early_stop": EarlyStop,
    "search": Search,
}  # fmt: skip
_KEYS = [name for name in SweepSpec.model_fields if name not in NO_KEYS]


def _explain(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "too_short":
        key = ".".join(str(p) for p in problem["loc"])
        return f"{key}: must not be empty"
    if problem["type"] == "string_pattern_mismatch" and problem["loc"][-1] == "mem":
        key = ".".join(str(part) for part in problem["loc"])
        return f"{key}: {problem['input']!r} must be a number with K, M, G or T behind it"
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return explain(problem, [*_KEYS, "base"])
    if problem["type"] == "extra_forbidden":
        valid = _SECTIONS.get(problem["loc"][0], Resources)
        if "when" in problem["loc"]:
            valid = ResourcesWhen
        return explain(problem, list(valid.model_fields))
    return explain(problem, ())


def _check_keys(spec: SweepSpec) -> None:
    """Check that every name in the file is a field, and that no axis is an execution field."""
    file = spec.file
    for section, names in _named_fields(spec):
        for name in names:
            if name not in FIELDS:
                raise UserError(f"{file}: {section}.{name}: unknown key; {hint_for(name, FIELDS)}")
            if name == "seed":
                raise UserError(f"{file}: {section}.seed: list the seeds under `seeds:`")
            if section in ("grid", "zip", "include", "search.space") and is_execution(name):
                raise UserError(
                    f"{file}: {section}.{name}: is an execution field and does not make another "
                    f"run; it belongs under `fixed:`"
                )
    _check_search(spec)
    for section, where in [
        *(("exclude.where", rule.where) for rule in spec.exclude),
        *(("resources.when.where", rule.where) for rule in spec.resources.when),
        ("baseline", spec.baseline or {}),
    ]:
        _check_where(f"{file}: {section}", where)
    seen: dict[str, str] = {}
    for section, axes in [("grid", spec.grid), *(("zip", group) for group in spec.zip)]:
        for name, values in axes.items():
            if spec.search and name in spec.search.space:
                raise UserError(f"{file}: search.space.{name}: is already an axis of {section}")
            if not values:
                raise UserError(f"{file}: {section}.{name}: the axis is empty")
            if name in seen:
                raise UserError(f"{file}: {section}.{name}: is already an axis of {seen[name]}")
            seen[name] = section
    for group in spec.zip:
        lengths = {name: len(values) for name, values in group.items()}
        if len(set(lengths.values())) != 1:
            text = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            raise UserError(f"{file}: zip: needs lists of equal length: {text or 'no axis'}")
    if len(set(spec.seeds)) != len(spec.seeds):
        raise UserError(f"{file}: seeds: {spec.seeds} names a seed twice")


def _check_search(spec: SweepSpec) -> None:
    """Check that a search's bounds are ordered numbers and its values valid for their fields."""
    for name, given in (spec.search.space if spec.search else {}).items():
        source = f"{spec.file}: search.space.{name}"
        if len(given) != 1:
            raise UserError(
                f"{source}: needs exactly one of {', '.join(KINDS)}, found {len(given)}"
            )
        kind, values = next(iter(given.items()))
        if not values:
            raise UserError(f"{source}: the axis is empty")
        for value in values:
            try:
                RunConfig(**{name: value})
            except ValidationError as error:
                message = explain(error.errors()[0], FIELDS)
                raise UserError(f"{spec.file}: search.space.{message}") from None
        if kind == "choice":
            continue
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        least = 0 if kind == "loguniform" else -math.inf
        if len(numbers) != 2 or len(values) != 2 or not least < numbers[0] < numbers[1]:
            above = " above 0" if kind == "loguniform" else ""
            raise UserError(
                f"{source}.{kind}: {values} must be two numbers{above}, the lower first"
            )


def _check_where(source: str, where: Settings) -> None:
    """Reject a wanted value that its field cannot have: it would silently match nothing."""
    for name, wanted in where.items():
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if isinstance(value, str) and re.search(r"[*?\[]", value):
                continue
            try:
                RunConfig(**{name: value})
            except ValidationError as error:
                raise UserError(f"{source}.{explain(error.errors()[0], FIELDS)}") from None


def _named_fields(spec: SweepSpec) -> list[tuple[str, list[str]]]:
    sections = [("fixed", list(spec.fixed)), ("grid", list(spec.grid))]
    sections += [("zip", list(group)) for group in spec.zip]
    sections += [("include", list(extra)) for extra in spec.include]
    sections += [("search.space", list(spec.search.space))] if spec.search else []
    sections += [("exclude.where", list(rule.where)) for rule in spec.exclude]
    sections += [("resources.when.where", list(rule.where)) for rule in spec.resources.when]
    return [*sections, ("baseline", list(spec.baseline or {}))]
