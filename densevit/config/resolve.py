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
from densevit.config.paths import absolute_paths, base_paths
from densevit.config.probes import probes_by_name
from densevit.config.run_config import FIELDS, TEMPERATURE_RANGE, BenchmarkFolder, RunConfig
from densevit.utils.errors import UserError, nearest


class Layer(NamedTuple):
    """Settings from one place; `source` names it in errors ("file" or "file: section")."""

    source: str
    settings: Mapping[str, Any]


def build(layers: Sequence[Layer]) -> RunConfig:
    """Merge layers of settings into a RunConfig; see `merged`.

    Errors: `UserError` naming the place, the key and the nearest valid name or the valid range.
    """
    settings = merged(layers)
    try:
        config = RunConfig(**settings)
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
        source = source_of(layers, "epochs" if "epochs" in settings else "warmup_epochs")
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
    if config.init_sha256 and not config.init_checkpoint:
        source = source_of(layers, "init_sha256")
        raise UserError(
            f"{source}: init_sha256: needs init_checkpoint, the file that it identifies"
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


# Fields that hold several values, with the value of an empty one.
_SECTIONS = {n: f.default for n, f in FIELDS.items() if isinstance(f.default, dict | list)}
# The value that removes a key of an earlier layer. A benchmark's null is its default folder.
_REMOVES = {"model_kwargs": None, "benchmarks": False}
_WORDS = {None: "null", False: "false"}


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """Merge layers of settings: later ones override earlier ones, mappings key by key.

    null removes a key of `model_kwargs`, false one of `benchmarks`. A field of several values
    without a value, as after its lines have been commented out, is empty.
    Errors: `UserError` for the removal of a key that is not set, and for an empty mapping whose
    keys are set in an earlier layer: to keep them and to remove them are both likely readings.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.settings.items():
            earlier = settings.get(name) or {}
            if value is None and name in _SECTIONS:
                if isinstance(earlier, dict) and earlier:
                    raise UserError(_ambiguous(layers, layer, name, earlier))
                value = _SECTIONS[name]
            if isinstance(value, dict) and isinstance(earlier, dict) and name in _REMOVES:
                value = _overlaid(layer, name, earlier, value)
            settings[name] = value
    return settings


def _overlaid(
    layer: Layer, name: str, earlier: Mapping[str, Any], later: Mapping[str, Any]
) -> dict[str, Any]:
    removes = _REMOVES[name]
    if not earlier and removes is None:  # timm ignores an argument that is null
        return dict(later)
    for key, value in later.items():
        if value is removes and key not in earlier:
            raise UserError(
                f"{layer.source}: {name}: {key}: {_WORDS[removes]} removes a key, and none of this "
                f"name was set before; {nearest(key, earlier)}"
            )
    return {k: v for k, v in {**earlier, **later}.items() if v is not removes}


def _ambiguous(layers: Sequence[Layer], layer: Layer, name: str, earlier: Mapping[str, Any]) -> str:
    source = source_of(layers[: layers.index(layer)], name)
    removed = ", ".join(f"{key}: {_WORDS[_REMOVES[name]]}" for key in earlier)
    return (
        f"{layer.source}: {name}: has no value, and {source} sets {', '.join(earlier)}; leave it "
        f"out to keep them, or remove them with {{{removed}}}"
    )


def source_of(layers: Sequence[Layer], key: str) -> str:
    """Return the place that set a key, for errors; the last layer if none did."""
    given = [layer.source for layer in layers if key in layer.settings]
    return given[-1] if given else layers[-1].source


def read_layers(path: Path) -> list[Layer]:
    """Return the layers of an experiment file: those of its `base`, then its own settings.

    `base` is a file or a list of files, the later ones over the earlier ones; a file that several
    of them extend comes once, first. Paths (`base`, `data_dir`, `benchmarks`, ...) are relative to
    the file that contains them.
    """
    found: dict[Path, Layer] = {}
    _add_layers(path, (), found)
    return list(found.values())


def base_layers(base: object, file: Path) -> list[Layer]:
    """Return the layers of what `base:` names in a file."""
    found: dict[Path, Layer] = {}
    for path in base_paths(base, file):
        _add_layers(path, (), found)
    return list(found.values())


def _add_layers(path: Path, chain: tuple[Path, ...], found: dict[Path, Layer]) -> None:
    """Add the layers of a file and of the files below it to `found`, by file."""
    real = path.resolve()
    if real in chain:
        names = " -> ".join(p.name for p in [*chain, real])
        raise UserError(f"{chain[-1]}: base: the files name each other in a circle: {names}")
    if real in found:
        return
    settings = yaml_file.load(path)
    for base in base_paths(settings.pop("base", None), path):
        _add_layers(base, (*chain, real), found)
    found[real] = Layer(str(path), absolute_paths(settings, path.parent))
