"""Measured training speeds, and the file that caches them."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from densevit.config.identity import SCHEMA_VERSION
from densevit.config.loss_modes import applies, loss_weights, self_supervised
from densevit.config.run_config import RunConfig
from densevit.launch.machine import Place
from densevit.runs.record_file import CHECKED, Count, RecordKind, Seconds, Time, read_record
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json

FORMAT = [1, SCHEMA_VERSION]  # of the cache file; a file of another format is ignored

# Fields that change no measured time: `estimate` counts how often each thing is done, and
# `speed_key` adds the losses itself. Every other field counts, new ones too: a field that is
# missing here costs an extra probe, not a wrong estimate.
_TIMELESS = {
    "cl_mode", "lambda_weight", "contrastive_weight_adaptive", "joint_dense_weight",
    "epochs", "warmup_epochs", "learning_rate", "weight_decay", "grad_clip", "layer_decay",
    "drop_path", "label_smoothing", "mixup", "pretrained", "init_checkpoint", "init_sha256",
    "temperature", "learnable_temp", "momentum", "seed",
    "watched", "watch_every", "watch_samples", "probes", "masks", "void",
    "experiment_name", "log_every", "health_every", "on_collapse", "checkpoint_minutes",
}  # fmt: skip


class Range(NamedTuple):
    """A central value, with its values if all steps were as fast, or as slow, as the extremes."""

    low: float
    central: float
    high: float


@dataclass(frozen=True)
class Probe:
    """A speed to measure: of `processes` processes that train a run of this configuration."""

    key: str
    config: RunConfig
    processes: int


@dataclass(frozen=True)
class Speed:
    """The result of a probe, in seconds; `densevit.cost.measure.measured` explains the fields."""

    device: str
    on_gpu: bool
    processes: int
    steps: Sequence[float]
    startup: float
    look: float
    evaluation: float
    evaluated_picture: float
    pictures: Mapping[str, int]

    def step(self, workers: int) -> Range:
        """Return the 10th, 50th and 90th percentile of seconds per step, over means of `workers`
        consecutive steps, since workers deliver batches in bursts."""
        width = min(max(workers, 1), len(self.steps))
        starts = range(len(self.steps) - width + 1)
        means = [statistics.fmean(self.steps[i : i + width]) for i in starts]
        if len(means) == 1:
            return Range(*means * 3)
        tenths = statistics.quantiles(means, n=10, method="inclusive")
        return Range(tenths[0], tenths[4], tenths[8])


def _with_train(pictures: dict[str, int]) -> dict[str, int]:
    if pictures.get("train", 0) < 1:
        raise ValueError("must have the number of images of train")
    return pictures


@CHECKED
class SpeedRecord(TypedDict):
    """A `Speed` in the cache file, with the time at which it was measured."""

    device: str
    on_gpu: bool
    processes: Annotated[Count, Field(ge=1)]
    steps: Annotated[list[Seconds], Field(min_length=1)]
    startup: Seconds
    look: Seconds
    evaluation: Seconds
    evaluated_picture: Seconds
    pictures: Annotated[dict[str, Count], AfterValidator(_with_train)]
    measured: Time


@CHECKED
class _AnyFormat(TypedDict, total=False):
    format: list[int]


@CHECKED
class _SpeedsRecord(TypedDict):
    """The cache file: place to key to speed."""

    places: dict[str, dict[str, SpeedRecord]]


_REMEDY = "remove the file, and speeds are measured again"
_ANY_FORMAT = RecordKind(_AnyFormat, _REMEDY)
_SPEEDS = RecordKind(_SpeedsRecord, _REMEDY)


def speed_key(config: RunConfig) -> dict[str, Any]:
    """Return the settings that a run's speed depends on; runs with equal keys share a probe."""
    named = {k: v for k, v in config if k not in _TIMELESS and applies(k, config)}
    losses = sorted(loss_weights(config))
    return {**named, "losses": losses, "self_supervised": self_supervised(config)}


def wanted_probes(plan: Plan) -> list[Probe]:
    """Return one probe for each kind of run in a plan, in the plan's order."""
    probes: dict[str, Probe] = {}
    for run in plan.grid.cells:
        key = probe_key(run)
        probes.setdefault(key, Probe(key, run.config, _processes(run)))
    return list(probes.values())


def measure(
    plan: Plan, probes: Iterable[Probe], cache_file: Path, place: Place
) -> dict[str, Speed]:
    """Return the speed of each probe by its key, measured at a `Place`.

    Speeds that the cache file holds for this place are not measured again. New speeds are added to
    it, even if a later probe fails or is interrupted.
    Errors: `UserError` naming the sweep file and the field, for a run that fails.
    """
    cached: Mapping[str, Mapping[str, Any]] = read_speeds(cache_file).get(place.name, {})
    missing = [probe for probe in probes if probe.key not in cached]
    if missing:
        cached = {**cached, **_probed(plan, missing, cache_file, place)}
    return {probe.key: speed_of(cached[probe.key]) for probe in probes}


def speeds_file(plan: Plan) -> Path:
    """Return the file that caches the speeds of a plan's runs."""
    return plan.folder / "estimate.json"


def _processes(run: Run) -> int:
    """Return the number of processes that train a run: one for each whole GPU of its share."""
    return max(1, int(run.devices))


def probe_key(run: Run) -> str:
    # Without a data_dir, the environment says where the images are.
    place = run.config.data_dir or os.environ.get("DENSEVIT_DATA")
    whole = {**speed_key(run.config), "data_dir": place, "processes": _processes(run)}
    text = json.dumps(whole, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _probed(plan: Plan, probes: list[Probe], file: Path, place: Place) -> dict[str, dict[str, Any]]:
    """Run the probes, add their results to the cache file and return them by key."""
    requests = [
        {"key": p.key, "config": p.config.model_dump(), "processes": p.processes} for p in probes
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    # Beside the cache: a file system that other nodes of the cluster share.
    with tempfile.TemporaryDirectory(prefix=".probe.", dir=file.parent) as folder:
        source, target = Path(folder) / "in.json", Path(folder) / "out.json"
        source.write_text(json.dumps(requests), encoding="utf-8")
        try:
            code = place.run(source, target)
        finally:
            results = read_json(target) or {}
            now = time.time()
            measured = {k: {**e, "measured": now} for k, e in results.items() if "error" not in e}
            _add_speeds(file, place.name, measured)
    for probe in probes:
        ended = {"error": f"ended with exit code {code} and no message"}
        found = results.get(probe.key, ended).get("error")
        if found is not None:
            cell = next(plan.label(run) for run in plan.grid.cells if probe_key(run) == probe.key)
            raise UserError(f"{plan.spec.file}: {found} (measuring {cell})")
    return measured


def read_speeds(file: Path) -> dict[str, dict[str, SpeedRecord]]:
    """Return the content of a cache file: place to key to a probe's result with its time."""
    any_format = read_record(file, _ANY_FORMAT)
    if any_format is None or any_format.get("format") != FORMAT:
        return {}
    record = read_record(file, _SPEEDS)
    return record["places"] if record else {}


def _add_speeds(file: Path, place: str, found: Mapping[str, Any]) -> None:
    places = read_speeds(file)
    write_json(
        file, {"format": FORMAT, "places": {**places, place: {**places.get(place, {}), **found}}}
    )


def speed_of(entry: Mapping[str, Any]) -> Speed:
    return Speed(**{field.name: entry[field.name] for field in fields(Speed)})
