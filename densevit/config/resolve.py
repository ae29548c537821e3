"""Resolve YAML files and flags to a RunConfig; errors name the place of a mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from densevit.config import yaml_file
from densevit.config.error_messages import explain
from densevit.config.evaluation_names import DRAWN_TESTS
from densevit.config.loss_modes import self_supervised
from densevit.config.paths import absolute_paths, base_path
from densevit.config.probes import probes_by_name
from densevit.config.run_config import FIELDS, TEMPERATURE_RANGE, BenchmarkFolder, RunConfig
from densevit.utils.errors import UserError


class Layer(NamedTuple):
    """Settings from one place; `source` names it in errors ("file" or "file: section")."""

    source: str
    settings: Mapping[str, Any]


def build(layers: Sequence[Layer]) -> RunConfig:
    """Merge layers of settings into a RunConfig; later layers override earlier ones.

    Errors: `UserError` naming the place, the key and the nearest valid name or the valid range.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer.settings)
    try:
        config = RunConfig(**merged)
    except ValidationError as error:
        # Report an unknown key first: a misspelled name often causes the other errors. Then a
        # range: a number for a field that also takes text was meant as a number.
        first = {"extra_forbidden": 0, "greater_than_equal": 1}
        problems = sorted(error.errors(), key=lambda p: first.get(p["type"], 2))
        key = str(problems[0]["loc"][0])
        source = source_of(layers, key)
        known = FIELDS if len(problems[0]["loc"]) == 1 else BenchmarkFolder.model_fields
        raise UserError(f"{source}: {explain(problems[0], known)}") from None
    if config.warmup_epochs >= config.epochs and config.warmup_epochs > 0:
        source = source_of(layers, "epochs" if "epochs" in merged else "warmup_epochs")
        raise UserError(
            f"{source}: warmup_epochs: {config.warmup_epochs} must be less than epochs: "
            f"{config.epochs}"
        )
    if config.batch_size % config.grad_accumulation:
        source = source_of(layers, "grad_accumulation")
        raise UserError(
            f"{source}: grad_accumulation: {config.grad_accumulation} does not divide batch_size: "
            f"{config.batch_size}"
        )
    if config.pretrained and config.init_checkpoint:
        source = source_of(layers, "init_checkpoint")
        raise UserError(f"{source}: init_checkpoint: set either this or pretrained, not both")
    fault = _unlabelled_fault(config)
    if fault:
        raise UserError(f"{source_of(layers, 'unlabelled')}: unlabelled: {fault}")
    low, high = TEMPERATURE_RANGE
    if config.learnable_temp and not low <= config.temperature <= high:
        source = source_of(layers, "temperature")
        raise UserError(
            f"{source}: temperature: {config.temperature} is out of range; with learnable_temp "
            f"it must be at least {low} and at most {high}"
        )
    return config


def _unlabelled_fault(config: RunConfig) -> str:
    """Return which field needs labels although the images have none; "" if none does."""
    if not config.unlabelled:
        return ""
    if not self_supervised(config):
        return "needs lambda_weight: 1, constant, with a contrastive loss: no other loss is trained"
    if config.dataset in DRAWN_TESTS:
        return f"{config.dataset} has labels"
    labelled = [name for name in config.probes if not probes_by_name()[name].masks]
    for field, names in (
        ("benchmarks", list(config.benchmarks)), ("watched", config.watched), ("probes", labelled),
    ):  # fmt: skip
        if names:
            return (
                f"{field}: {', '.join(names)}: needs labels (later: densevit eval RUN knn=FOLDER)"
            )
    return ""


def source_of(layers: Sequence[Layer], key: str) -> str:
    """Return the place that set a key, for errors; the last layer if none did."""
    given = [layer.source for layer in layers if key in layer.settings]
    return given[-1] if given else layers[-1].source


def read_layers(path: Path) -> list[Layer]:
    """Return the layers of an experiment file: its `base` chain, deepest first, then itself.

    Paths (`base`, `data_dir`, `benchmarks`, ...) are relative to the file that contains them.
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
        settings = yaml_file.load(current)
        base = settings.pop("base", None)
        layers.append(Layer(str(current), absolute_paths(settings, current.parent)))
        current = base_path(base, current) if base is not None else None
    return layers[::-1]
