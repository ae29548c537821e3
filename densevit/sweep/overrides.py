"""Settings of a command line (`--set KEY=VALUE`) over those of a sweep file."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from densevit.config import yaml_file
from densevit.config.error_messages import explain, hint_for
from densevit.config.paths import absolute_paths
from densevit.config.resolve import Layer
from densevit.config.run_config import FIELDS, NAME_LENGTH, is_execution
from densevit.sweep.cells import value_text
from densevit.sweep.spec import Resources, SeedList, SweepSpec
from densevit.utils.errors import UserError

RESOURCE = "resources."


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """Return the values of `KEY=VALUE` texts by key: a field, `seeds` or `resources.NAME`.

    Values are YAML; a path is relative to the current folder.
    Errors: `UserError` that names the text and the nearest valid key.
    """
    found: dict[str, Any] = {}
    for text in changes:
        key, _, value = text.partition("=")
        source = f"--set {shlex.quote(text)}"
        if not value.strip():
            raise UserError(f"{source}: has no value; write KEY=VALUE")
        if key not in valid_keys():
            hint = "write seeds=" if key == "seed" else hint_for(key, valid_keys())
            raise UserError(f"--set {key}: unknown key; {hint}")
        if key in found:
            raise UserError(f"{source}: {key} is given twice")
        found[key] = yaml_file.parse(f"value: {value}", source)["value"]
    return absolute_paths(found, Path.cwd())


def valid_keys() -> list[str]:
    """Return the keys that `--set` knows."""
    fields = [name for name in FIELDS if name != "seed"]
    return [*fields, "seeds", *(f"{RESOURCE}{name}" for name in Resources.model_fields)]


def changes_runs(key: str) -> bool:
    """Return True if another value of the key means other runs."""
    return not key.startswith(RESOURCE) and not is_execution(key)


def override(spec: SweepSpec, changes: Sequence[str]) -> SweepSpec:
    """Return a sweep with settings of a command line over its own, for every cell.

    If they mean other runs, the sweep has another name: `epochs=2` makes NAME-epochs-2, whose plan,
    report and MLflow run leave those of NAME alone.
    Errors: `UserError` for a key that the sweep varies, and for a value that it cannot have.
    """
    given = parse_changes(changes)
    varied = next((key for key in given if key in spec.axes()), None)
    if varied is not None:
        raise UserError(f"--set {varied}: {spec.file} varies it; change its values there")
    update: dict[str, Any] = {
        "name": _name(spec.name, {k: v for k, v in given.items() if changes_runs(k)}),
        "changes": tuple(sorted(changes)),
        "layers": (*spec.layers, Layer("--set", {k: v for k, v in given.items() if k in FIELDS})),
        "request": _resources(
            {k.removeprefix(RESOURCE): v for k, v in given.items() if k.startswith(RESOURCE)}
        ),
    }
    if "seeds" in given:
        update["seeds"] = _seeds(given["seeds"])
    return spec.model_copy(update=update)


def _name(name: str, changes: dict[str, Any]) -> str:
    """Return the name of a sweep with other settings, in the letters that a name may have."""
    exact = "-".join([name, *(f"{key}-{value_text(changes[key])}" for key in sorted(changes))])
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", exact)
    if plain == exact and len(exact) <= NAME_LENGTH:
        return exact
    digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
    return f"{plain[: NAME_LENGTH - 9]}-{digest}"


def _resources(given: dict[str, Any]) -> Resources:
    if isinstance(given.get("mem"), int):  # a number without a unit is in MB, as in Slurm
        given["mem"] = str(given["mem"])
    try:
        return Resources(**given)
    except ValidationError as error:
        message = explain(error.errors()[0], Resources.model_fields)
        raise UserError(f"--set {RESOURCE}{message}") from None


def _seeds(given: object) -> list[int]:
    try:
        seeds = SeedList.model_validate({"seeds": given}).seeds
    except ValidationError as error:
        raise UserError(f"--set {explain(error.errors()[0], ())}") from None
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--set seeds: {seeds} names a seed twice")
    return seeds
