"""The cost of a sweep, computed from the measured speed of a few steps of each kind of run.

Runs with equal `speed_key` are equally fast and share a probe. The unit follows from the probes.
If one ran on a GPU, costs are in GPU-hours: an hour of a run counts `Run.devices`. Otherwise each
hour of a run is one CPU run-hour, whatever its resources. The model assumes that packed runs do
not slow each other down and that the exchange of gradients between GPUs takes no time.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from densevit.config.probes import probes_by_name
from densevit.config.run_config import RunConfig
from densevit.cost.speeds import (
    Range,
    Speed,
    probe_key,
    read_speeds,
    speed_of,
    speeds_file,
    wanted_probes,
)
from densevit.runs.status import Status
from densevit.sweep.cells import cell_values, value_text
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan

GPU_HOURS, CPU_RUN_HOURS = "GPU-hours", "CPU run-hours"


@dataclass(frozen=True)
class Estimate:
    """The cost of a plan's runs, in `unit`.

    runs: run id to the cost of the whole run.
    total, remaining: the cost of all runs, and of the `to_run` remaining runs from their start.
    wall_hours: hours until the remaining runs end, `throttle` jobs at a time, without queue time.
    shares: axis to value (as text) to its share of the total.
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


def estimate(
    plan: Plan, speeds: Mapping[str, Speed], throttle: int, runs: Iterable[Run] | None = None
) -> Estimate:
    """Return the cost of a plan, and the cost and wall time of its remaining `runs` (all if None).

    `throttle` jobs run at a time, each of `pack` runs. The cost includes start-up, steps,
    evaluations and measurements of feature health, but not checkpoints, which are written while
    training goes on. Errors: `KeyError` for a missing speed.
    """
    remaining = list(plan.runs if runs is None else runs)
    found = {run.cell: speeds[probe_key(run)] for run in plan.grid.cells}
    on_gpu = any(speed.on_gpu for speed in found.values())
    hours = {run.cell: _hours(run, found[run.cell]) for run in plan.grid.cells}
    costs = {
        run.id: Range(*(_hour_cost(run, on_gpu) * h for h in hours[run.cell])) for run in plan.runs
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


def load_estimate(plan: Plan) -> Estimate | None:
    """Return the estimate from cached speeds, without measuring; None if a speed is missing.

    If several machines have all speeds, the one measured last counts.
    """
    needed = {probe.key for probe in wanted_probes(plan)}
    places = read_speeds(speeds_file(plan)).values()
    complete = [speeds for speeds in places if needed <= speeds.keys()]
    if not complete:
        return None
    last = max(complete, key=lambda speeds: max(speeds[key]["measured"] for key in needed))
    return estimate(plan, {key: speed_of(last[key]) for key in needed}, throttle=1)


def used(plan: Plan, statuses: Mapping[str, Status], estimated: Estimate) -> float:
    """Return the cost of the runs so far, in the unit of an estimate."""
    on_gpu = estimated.unit == GPU_HOURS
    return sum(_hour_cost(run, on_gpu) * statuses[run.id].spent / 3600 for run in plan.runs)


def _hour_cost(run: Run, on_gpu: bool) -> float:
    return run.devices if on_gpu else 1.0


def _hours(run: Run, speed: Speed) -> Range:
    """Return the duration of a run from start to end, in hours."""
    config, pictures = run.config, speed.pictures
    an_epoch = max(1, pictures["train"] // config.batch_size)
    steps = config.epochs * an_epoch
    # val after each epoch, the benchmarks after the last; the processes share the images.
    tests = [pictures.get("val", 0)] * config.epochs
    tests += [count for name, count in pictures.items() if name not in ("train", "val")]
    tests += _passes(config, pictures)
    evaluated = sum(math.ceil(count / speed.processes) for count in tests)
    # Health is measured before the first step, every `health_every` steps and after each epoch.
    both = steps // math.lcm(config.health_every, an_epoch)
    health_checks = 1 + steps // config.health_every + config.epochs - both
    rest = speed.startup + health_checks * speed.look
    rest += len(tests) * speed.evaluation + evaluated * speed.evaluated_picture
    return Range(*((rest + steps * step) / 3600 for step in speed.step(config.workers)))


def _passes(config: RunConfig, pictures: Mapping[str, int]) -> list[int]:
    """Return the number of images of each pass over a watched set and of each pass for a probe.

    The fitting of a probe on its features is not counted.
    """
    both = [pictures["train"], pictures.get("val", 0)]
    probes = probes_by_name()
    counted = both * len({probes[name].masks for name in config.probes})
    for name in config.watched:
        own = [min(config.watch_samples, pictures.get(name, 0))]
        once = both if name in probes else own
        counted += once * ((config.epochs - 1) // config.watch_every)
    return counted


def _jobs(runs: Iterable[Run]) -> list[list[Run]]:
    """Group runs into jobs in the plan's order, `pack` runs of equal resources per job."""
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
    """Return the end of the last job if each job in turn takes the first free slot."""
    ends = [0.0] * slots
    for duration in hours:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def _shares(plan: Plan, costs: Mapping[str, Range]) -> dict[str, dict[str, float]]:
    total = math.fsum(cost.central for cost in costs.values())
    shares: dict[str, dict[str, float]] = {axis: {} for axis in plan.axes}
    for run in plan.runs:
        for axis, value in cell_values(run.config, plan.axes).items():
            text = value_text(value)
            shares[axis][text] = shares[axis].get(text, 0.0) + costs[run.id].central / total
    return shares


def _sum(costs: Iterable[Range]) -> Range:
    columns = list(zip(*costs, strict=True)) or [()] * 3
    return Range(*map(math.fsum, columns))
