"""What a sweep will cost, from how fast a few steps of each kind of run are.

Two runs that `speed_key` cannot tell apart are equally fast and share a probe. What a cost is
counted in follows from what was measured: where a GPU was, an hour of a run counts its share of
GPUs (`gpus` · `nodes` / `pack` of its resources, each 1 unless given), in GPU-hours; where none
was, it counts one CPU run-hour, whatever the resources say. Runs that are packed side by side are
taken to be as fast as alone, and GPUs that train together to exchange gradients in no time.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from densevit.config import SCHEMA_VERSION, RunConfig, applies, loss_weights, self_supervised
from densevit.errors import UserError
from densevit.probe import Place, this_machine
from densevit.rundir import Status, read_json, write_json
from densevit.sweep.grid import Run, cell_values, value_word
from densevit.sweep.plan import Plan

FORMAT = [1, SCHEMA_VERSION]  # of the file that speeds are kept in; others are measured anew
GPU_HOURS, CPU_RUN_HOURS = "GPU-hours", "CPU run-hours"

# Fields that change no time that is measured: how often things are done is counted in `estimate`,
# the losses that are computed are told by `speed_key` itself. Any other field does, a new one too:
# to forget one here costs a probe, and not a wrong estimate.
_TIMELESS = {
    "cl_mode", "lambda_weight", "contrastive_weight_adaptive", "joint_dense_weight",
    "epochs", "warmup_epochs", "learning_rate", "weight_decay", "grad_clip", "layer_decay",
    "drop_path", "label_smoothing", "mixup", "pretrained", "init_checkpoint",
    "temperature", "learnable_temp", "momentum", "seed",
    "watched", "watch_every", "watch_samples", "probes", "masks",
    "experiment_name", "log_every", "health_every", "on_collapse", "checkpoint_minutes",
}  # fmt: skip


class Range(NamedTuple):
    """A number, with what it is when all steps are as fast, or slow, as some were in the probe."""

    low: float
    central: float
    high: float


@dataclass(frozen=True)
class Probe:
    """What is to be measured: how fast `processes` train a run of this configuration."""

    key: str
    config: RunConfig
    processes: int


@dataclass(frozen=True)
class Speed:
    """What a probe has found; see `densevit.probe.measured`. Seconds."""

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
        """Seconds a step: the 10th, 50th and 90th percentile of the means of as many steps in a row
        as processes load pictures, since those deliver in bursts."""
        width = min(max(workers, 1), len(self.steps))
        starts = range(len(self.steps) - width + 1)
        means = [statistics.fmean(self.steps[i : i + width]) for i in starts]
        if len(means) == 1:
            return Range(*means * 3)
        tenths = statistics.quantiles(means, n=10, method="inclusive")
        return Range(tenths[0], tenths[4], tenths[8])


@dataclass(frozen=True)
class Estimate:
    """What the runs of a plan cost, in `unit`.

    runs: run id to the cost of the whole run.
    total, remaining: of all runs, and of the `to_run` ones that are to be run, from their start.
    wall_hours: until these have ended with `throttle` at a time, whoever waits for machines.
    shares: axis to value (in words) to its share of the total.
    """

    unit: str
    devices: tuple[str, ...]
    runs: dict[str, Range]
    total: Range
    remaining: Range
    to_run: int
    throttle: int
    wall_hours: Range
    shares: dict[str, dict[str, float]]


def speed_key(config: RunConfig) -> dict[str, Any]:
    """What a run's speed depends on; of equal keys one is measured."""
    named = {k: v for k, v in config if k not in _TIMELESS and applies(k, config)}
    losses = sorted(loss_weights(config))
    return {**named, "losses": losses, "self_supervised": self_supervised(config)}


def wanted_probes(plan: Plan) -> list[Probe]:
    """A probe for each kind of run in a plan, in its order."""
    probes: dict[str, Probe] = {}
    for run in plan.grid.cells:
        key = _key(run)
        probes.setdefault(key, Probe(key, run.config, _processes(run)))
    return list(probes.values())


def measure(
    plan: Plan, probes: Iterable[Probe], cache_file: Path, place: Place | None = None
) -> dict[str, Speed]:
    """The speed of each probe by its key, on this machine or elsewhere; see `Place`.

    What the cache file holds of this place is not measured again, and what is measured is kept
    there, even when a later probe fails or is stopped.
    Errors: `UserError` naming the sweep file and the field, for a run that cannot work.
    """
    place = place or this_machine()
    held = _held(cache_file).get(place.name, {})
    missing = [probe for probe in probes if probe.key not in held]
    if missing:
        held = {**held, **_probed(plan, missing, cache_file, place)}
    return {probe.key: _speed(held[probe.key]) for probe in probes}


def estimate(
    plan: Plan, speeds: Mapping[str, Speed], throttle: int, runs: Iterable[Run] | None = None
) -> Estimate:
    """What a plan costs at these speeds, and what the runs that are still to be run (all if None)
    cost and take, `throttle` jobs at a time, each of `pack` runs.

    Counted are start-up, steps, evaluations and looks at the features' health; not the writing of
    checkpoints, which goes on beside the steps. Errors: `KeyError` for a speed that is missing.
    """
    remaining = list(plan.runs if runs is None else runs)
    found = {run.cell: speeds[_key(run)] for run in plan.grid.cells}
    on_gpu = any(speed.on_gpu for speed in found.values())
    hours = {run.cell: _hours(run, found[run.cell]) for run in plan.grid.cells}
    costs = {
        run.id: Range(*(_hour_counts(run, on_gpu) * h for h in hours[run.cell]))
        for run in plan.runs
    }
    jobs = [[hours[run.cell] for run in job] for job in _jobs(remaining)]
    walls = (_makespan([max(h[i] for h in job) for job in jobs], throttle) for i in range(3))
    return Estimate(
        unit=GPU_HOURS if on_gpu else CPU_RUN_HOURS,
        devices=tuple(dict.fromkeys(speed.device for speed in found.values())),
        runs=costs,
        total=_sum(costs.values()),
        remaining=_sum(costs[run.id] for run in remaining),
        to_run=len(remaining),
        throttle=throttle,
        wall_hours=Range(*walls),
        shares=_shares(plan, costs),
    )


def load_estimate(
    plan: Plan, throttle: int = 1, runs: Iterable[Run] | None = None
) -> Estimate | None:
    """The estimate from what was measured before, last where everything was; measures nothing.

    None when a run of the plan is of a kind that was never measured.
    """
    wanted = {probe.key for probe in wanted_probes(plan)}
    complete = [held for held in _held(speeds_file(plan)).values() if wanted <= held.keys()]
    if not complete:
        return None
    last = max(complete, key=lambda held: max(held[key]["measured"] for key in wanted))
    return estimate(plan, {key: _speed(last[key]) for key in wanted}, throttle, runs)


def speeds_file(plan: Plan) -> Path:
    """Where the speeds of a plan's runs are kept."""
    return plan.folder / "estimate.json"


def used(plan: Plan, statuses: Mapping[str, Status], estimated: Estimate) -> float:
    """What the runs have cost so far, in the unit of an estimate."""
    on_gpu = estimated.unit == GPU_HOURS
    return sum(_hour_counts(run, on_gpu) * statuses[run.id].spent / 3600 for run in plan.runs)


def parse_budget(text: str) -> float:
    """The number in `200gpuh`. Errors: `UserError` that says what is valid."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?gpuh", text.strip())
    if found is None or not float(found[1]) > 0:
        raise UserError(
            f"--budget: {text!r} is no budget; valid is a number of GPU-hours above 0, as in "
            f"200gpuh or 12.5gpuh"
        )
    return float(found[1])


def check_budget(estimated: Estimate, budget: float) -> None:
    """Refuse what would cost more than a budget from now on.

    The budget counts in the estimate's unit: without a GPU, a run-hour for each hour.
    Errors: `UserError` with both numbers.
    """
    needed = estimated.remaining
    if needed.central > budget:
        raise UserError(
            f"--budget: the {estimated.to_run} runs that are not finished would cost about "
            f"{_number(needed.central)} {estimated.unit} (up to {_number(needed.high)}), more than "
            f"the {_number(budget)} of the budget"
        )


def estimate_lines(estimated: Estimate) -> list[str]:
    """An estimate for a terminal."""
    total = _cost(estimated.total, estimated.unit)
    lines = [f"estimated cost: {len(estimated.runs)} runs, {total}"]
    if estimated.to_run < len(estimated.runs):
        remaining = _cost(estimated.remaining, estimated.unit)
        lines.append(f"still to be spent: {estimated.to_run} runs, {remaining}")
    low, central, high = (_duration(hours) for hours in estimated.wall_hours)
    lines.append(f"wall time: {central} ({low} to {high}), {estimated.throttle} at a time")
    for axis, shares in estimated.shares.items():
        told = ", ".join(f"{value} {100 * share:.0f} %" for value, share in shares.items())
        lines.append(f"share of {axis}: {told}")
    return [*lines, f"measured on {', '.join(estimated.devices)}"]


def estimate_record(estimated: Estimate) -> dict[str, Any]:
    """The fields of `Estimate` for programs; a range is `{"low", "central", "high"}`."""
    return {
        **asdict(estimated),
        "devices": list(estimated.devices),
        "runs": {run_id: cost._asdict() for run_id, cost in estimated.runs.items()},
        **{k: getattr(estimated, k)._asdict() for k in ("total", "remaining", "wall_hours")},
    }


def _hours(run: Run, speed: Speed) -> Range:
    """How long a run takes, beginning to end."""
    config, pictures = run.config, speed.pictures
    an_epoch = pictures["train"] // config.batch_size
    steps = config.epochs * an_epoch
    # val after each epoch, the benchmarks after the last; each process has its share.
    tests = [pictures["val"]] * config.epochs
    tests += [count for name, count in pictures.items() if name not in ("train", "val")]
    tests += _looked_at(config, pictures)
    evaluated = sum(math.ceil(count / speed.processes) for count in tests)
    # A look before the first step, every `health_every` steps and at the end of each epoch.
    both = steps // math.lcm(config.health_every, an_epoch)
    looks = 1 + steps // config.health_every + config.epochs - both
    rest = speed.startup + looks * speed.look
    rest += len(tests) * speed.evaluation + evaluated * speed.evaluated_picture
    return Range(*((rest + steps * step) / 3600 for step in speed.step(config.workers)))


def _looked_at(config: RunConfig, pictures: Mapping[str, int]) -> list[int]:
    """Pictures of each watched set, as often as it is looked at, and of each pass for a probe.

    What a probe learns from its features is not counted.
    """
    both = [pictures["train"], pictures["val"]]
    passes = [name == "dense-probe" for name in config.probes]
    counted = both * (sum(passes) + (not all(passes)))
    for name in config.watched:
        own = [min(config.watch_samples, pictures.get(name, 0))]
        once = both if name in ("knn", "knn-patch") else own
        counted += once * ((config.epochs - 1) // config.watch_every)
    return counted


def _hour_counts(run: Run, on_gpu: bool) -> float:
    """What an hour of a run costs."""
    asked = run.resources
    return asked.get("gpus", 1) * asked.get("nodes", 1) / asked.get("pack", 1) if on_gpu else 1.0


def _processes(run: Run) -> int:
    """How many processes train a run: one for each whole GPU of its share."""
    return max(1, int(_hour_counts(run, on_gpu=True)))


def _key(run: Run) -> str:
    # Where no field says where the pictures lie, the environment does.
    place = run.config.data_dir or os.environ.get("DENSEVIT_DATA")
    whole = {**speed_key(run.config), "data_dir": place, "processes": _processes(run)}
    text = json.dumps(whole, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _jobs(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs in the order of the plan, `pack` of equal resources together in one job."""
    jobs: list[list[Run]] = []
    filling: dict[str, list[Run]] = {}
    for run in runs:
        like = json.dumps(run.resources, sort_keys=True)
        job = filling.get(like, [])
        if len(job) % run.resources.get("pack", 1) == 0:  # none yet, or full
            job = filling[like] = []
            jobs.append(job)
        job.append(run)
    return jobs


def _makespan(hours: Iterable[float], slots: int) -> float:
    """When the last job ends, if each in turn takes the slot that is free first."""
    ends = [0.0] * slots
    for duration in hours:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def _shares(plan: Plan, costs: Mapping[str, Range]) -> dict[str, dict[str, float]]:
    total = math.fsum(cost.central for cost in costs.values())
    shares: dict[str, dict[str, float]] = {axis: {} for axis in plan.axes}
    for run in plan.runs:
        for axis, value in cell_values(run.config, plan.axes).items():
            word = value_word(value)
            shares[axis][word] = shares[axis].get(word, 0.0) + costs[run.id].central / total
    return shares


def _sum(costs: Iterable[Range]) -> Range:
    columns = list(zip(*costs, strict=True)) or [()] * 3
    return Range(*map(math.fsum, columns))


def _probed(plan: Plan, probes: list[Probe], file: Path, place: Place) -> dict[str, dict[str, Any]]:
    """What the probes have found, by their keys; it is kept in the cache file."""
    wanted = [
        {"key": p.key, "config": p.config.model_dump(), "processes": p.processes} for p in probes
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    # Beside the cache, where another machine of the cluster sees it as well.
    with tempfile.TemporaryDirectory(prefix=".probe.", dir=file.parent) as folder:
        source, target = Path(folder) / "in.json", Path(folder) / "out.json"
        source.write_text(json.dumps(wanted), encoding="utf-8")
        try:
            code = place.run(source, target)
        finally:
            done = read_json(target) or {}
            now = time.time()
            good = {k: {**e, "measured": now} for k, e in done.items() if "error" not in e}
            _keep(file, place.name, good)
    for probe in probes:
        ended = {"error": f"ended with exit code {code} and without a word"}
        found = done.get(probe.key, ended).get("error")
        if found is not None:
            cell = next(plan.label(run) for run in plan.grid.cells if _key(run) == probe.key)
            raise UserError(f"{plan.spec.file}: {found} (measuring {cell})")
    return good


def _held(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What a cache file holds: place to key to what a probe has found, and when."""
    record = read_json(file)
    return record["places"] if record is not None and record.get("format") == FORMAT else {}


def _keep(file: Path, place: str, found: Mapping[str, Any]) -> None:
    places = _held(file)
    write_json(
        file, {"format": FORMAT, "places": {**places, place: {**places.get(place, {}), **found}}}
    )


def _speed(entry: Mapping[str, Any]) -> Speed:
    return Speed(**{name: value for name, value in entry.items() if name != "measured"})


def _cost(cost: Range, unit: str) -> str:
    return f"{_number(cost.central)} {unit} ({_number(cost.low)} to {_number(cost.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
