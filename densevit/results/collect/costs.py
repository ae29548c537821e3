"""GPU-hours, time and memory of runs."""

from __future__ import annotations

import re
import statistics
from contextlib import suppress

import numpy as np
import pandas as pd

from densevit.results.collect.metrics_reader import complete_lines
from densevit.runs.directory import RunFolder
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError

COSTS = [
    "run", "cell", "seed", "gpu_hours", "kwh", "train_seconds", "images_per_second",
    "peak_memory_mib", "step_ms",
]  # fmt: skip
WATTS = "gpu_0_power_usage_watts"
PHASES = ("data_ms", "augment_ms", "forward_ms", "contrastive_ms", "backward_ms", "optimizer_ms")


def costs(plan: Plan) -> pd.DataFrame:
    """Return the costs of the runs that have trained, one row per run (`COSTS` and its phases).

    gpu_hours: hours of all its starts times its share of GPUs (`gpus` · `nodes` / `pack` of its
        resources). An hour without a GPU (`device: cpu`, or `gpus: 0`) counts 1, as in an estimate.
    train_seconds: time in training steps alone; NaN until the run is finished.
    images_per_second, step_ms, data_ms, ...: medians of the finite values over all logged
        intervals, of which the first includes the start-up. step_ms is the sum of all phases.
    peak_memory_mib: the maximum.
    kwh: gpu_hours times the mean of the logged watts of the first GPU; NaN without a GPU.
    Values that a run has not logged are NaN.
    """
    found = {run.id: _spent(plan.run_folder(run)) for run in plan.runs}
    trained = [run for run in plan.runs if found[run.id]]
    table = pd.DataFrame([found[run.id] for run in trained], dtype="float64")
    keys = list(table.columns)
    phases = sorted(name for name in keys if name.endswith("_ms"))
    ordered = [name for name in PHASES if name in phases]
    ordered += [name for name in phases if name not in ordered]
    table = table.reindex(columns=[*COSTS[5:], *ordered, "spent", WATTS])
    images = np.array([run.config.batch_size for run in trained])  # per step
    table["step_ms"] = 1000 * images / table["images_per_second"]
    shares = np.array([run.devices for run in trained])
    hours = table.pop("spent") * shares / 3600
    table.insert(0, "kwh", hours * table.pop(WATTS) / 1000)
    table.insert(0, "gpu_hours", hours)
    table.insert(0, "seed", np.array([run.seed for run in trained], np.int64))
    table.insert(0, "cell", pd.array([run.cell for run in trained], "str"))
    table.insert(0, "run", pd.array([run.id for run in trained], "str"))
    return table


# Finite values as the trainer writes them. Parsing all lines as JSON takes five times as long.
_LOGGED = re.compile(
    rb'"(?:time/(\w+_ms)|(?:train|system)/(images_per_second|peak_memory_mib|'
    rb'gpu_0_power_usage_watts))":'
    rb" ?(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)[,}]"
)


def _spent(folder: RunFolder) -> dict[str, float]:
    """Return the costs of a run by name, and `spent`, its seconds; empty if it has not trained."""
    logged: dict[bytes, list[float]] = {}
    for phase, other, digits in _LOGGED.findall(complete_lines(folder)):
        logged.setdefault(phase or other, []).append(float(digits))
    if not logged:
        return {}
    found = {name.decode(): statistics.median(values) for name, values in logged.items()}
    if WATTS.encode() in logged:
        found[WATTS] = statistics.fmean(logged[WATTS.encode()])
    if b"peak_memory_mib" in logged:
        found["peak_memory_mib"] = max(logged[b"peak_memory_mib"])
    with suppress(UserError):
        status = folder.status_record()
        found |= {"spent": status["spent"]} if status and "spent" in status else {}
    with suppress(UserError):
        results = folder.results()
        trained = results and results.get("train_seconds")
        found |= {} if trained is None else {"train_seconds": trained}
    return found
