"""How runs went: their logged numbers over the steps, and what each has cost."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from densevit.errors import UserError
from densevit.metricsfile import finite, number
from densevit.results import kept
from densevit.rundir import RunFolder, read_json
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan

CURVES = ["run", "cell", "seed", "step", "epoch", "name", "value"]
COSTS = [
    "run", "cell", "seed", "gpu_hours", "train_seconds", "images_per_second", "peak_memory_mib",
    "step_ms",
]  # fmt: skip
PHASES = ("data_ms", "augment_ms", "forward_ms", "contrastive_ms", "backward_ms", "optimizer_ms")

_WORD = pa.dictionary(pa.int32(), pa.large_string())
_POINTS = pa.schema(
    [("step", pa.int64()), ("epoch", pa.float64()), ("name", _WORD), ("value", pa.float64())]
)
_SPENT = pa.schema([("name", _WORD), ("value", pa.float64())])


def curves(plan: Plan, names: Sequence[str], cells: Collection[str] | None = None) -> pd.DataFrame:
    """Numbers over the steps, of every run that has logged any: a row a point (`CURVES`).

    `names` are keys of metrics.jsonl, such as val/top1 (percent), train/loss, health/patch_rank or
    watch/imagenet-a/top1; `cells` are ids, None for all. Runs that failed or still run are among
    them, as far as they came: `coverage` tells which these are. A step that was logged twice under
    a name has its later value, and one at which a run diverged NaN or an infinite one; a line that
    cannot be read is left out.
    """
    runs = [run for run in plan.runs if cells is None or run.cell in cells]
    wanted = sorted(set(names))
    pattern = re.compile(b"|".join(re.escape(json.dumps(n).encode()) for n in wanted) or b"(?!)")
    code = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]

    def read(run: Run) -> list[tuple[Any, ...]]:
        return _points(plan.run_folder(run), pattern, set(wanted))

    found = _kept(plan, f"curves-{code}", _POINTS, runs, ("metrics.jsonl",), read)
    chosen = found.taken([run.id for run in runs])
    places = np.repeat(np.arange(len(runs)), chosen.counts())
    columns = {
        "run": kept.words(places, [run.id for run in runs]),
        "cell": kept.words(places, [run.cell for run in runs]),
        "seed": np.array([run.seed for run in runs], np.int64)[places],
        **{name: chosen.rows[name] for name in ("step", "epoch")},
        "name": chosen.rows["name"].cast(pa.large_string()),
        "value": chosen.rows["value"],
    }
    return pa.table(columns).to_pandas()


def costs(plan: Plan) -> pd.DataFrame:
    """What each run has cost that has trained: a row a run (`COSTS` and its phases).

    gpu_hours: hours of all its starts times its share of GPUs (`gpus` · `nodes` / `pack` of its
        resources); an hour without a GPU (`device: cpu`, or `gpus: 0`) counts 1, as in an estimate.
    train_seconds: of the steps alone; NaN until the run is finished.
    images_per_second, step_ms, data_ms, ...: medians over the logged intervals, of which the first
        has the start in it, and of those that are finite; step_ms is the sum of all phases.
        peak_memory_mib: the highest.
    What a run has not logged is NaN.
    """
    runs = list(plan.runs)
    names = ("metrics.jsonl", "status.json", "results.json")
    found = _kept(plan, "costs", _SPENT, runs, names, lambda run: _spent(plan.run_folder(run)))
    chosen = found.taken([run.id for run in runs])
    counts = chosen.counts()
    trained = [run for run, count in zip(runs, counts, strict=True) if count]
    places = np.repeat(np.arange(len(trained)), counts[counts > 0])
    rows = chosen.rows["name"].combine_chunks()
    keys = rows.dictionary.to_pylist()
    values = np.full((len(trained), len(keys)), math.nan)
    values[places, rows.indices.to_numpy()] = chosen.rows["value"].to_numpy()
    table = pd.DataFrame(values, columns=keys)
    phases = sorted(name for name in keys if name.endswith("_ms"))
    ordered = [name for name in PHASES if name in phases]
    ordered += [name for name in phases if name not in ordered]
    table = table.reindex(columns=[*COSTS[4:], *ordered, "spent"])
    pictures = np.array([run.config.batch_size for run in trained])  # a step
    table["step_ms"] = 1000 * pictures / table["images_per_second"]
    shares = np.array([_devices(run) for run in trained])
    table.insert(0, "gpu_hours", table.pop("spent") * shares / 3600)
    table.insert(0, "seed", np.array([run.seed for run in trained], np.int64))
    table.insert(0, "cell", pd.array([run.cell for run in trained], "str"))
    table.insert(0, "run", pd.array([run.id for run in trained], "str"))
    return table


def _kept(
    plan: Plan, name: str, schema: pa.Schema, runs: Sequence[Run], files: Sequence[str],
    read: Callable[[Run], list[tuple[Any, ...]]],
) -> kept.Kept:  # fmt: skip
    """The rows of runs, read again where one of the files has changed."""
    file, about = plan.folder / "cache" / name, str(plan.folder)
    old, since = kept.read(file, about, schema), kept.now()
    entries, rows = {}, []
    for run in runs:
        path = str(plan.run_folder(run).path)
        seen = kept.stamp(f"{path}/{each}" for each in files)
        if not old.has(run.id, seen):
            found = read(run)
            entries[run.id] = kept.Entry(seen, len(rows), len(found))
            rows += found
    fresh = kept.Kept(
        entries, kept.table(list(zip(*rows, strict=True)) or [()] * len(schema), schema)
    )
    return kept.update(file, about, old, fresh, [run.id for run in plan.runs], since)


def _whole_lines(folder: RunFolder) -> bytes:
    """The metrics of a run up to the last line that is complete."""
    try:
        data = folder.metrics_file.read_bytes()
    except OSError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def _lines(folder: RunFolder, pattern: re.Pattern[bytes]) -> Iterable[dict[str, Any]]:
    """The lines of a run's metrics in which a pattern occurs, without those that are broken."""
    for line in _whole_lines(folder).splitlines():
        if pattern.search(line):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found


def _points(
    folder: RunFolder, pattern: re.Pattern[bytes], names: Collection[str]
) -> list[tuple[int, float, str, float]]:
    points: dict[tuple[str, int], tuple[int, float, str, float]] = {}
    for line in _lines(folder, pattern):
        step, epoch = finite(line.get("step")), finite(line.get("epoch"))
        if step is None or epoch is None:
            continue
        for name, logged in line.items():
            value = number(logged) if name in names else None
            if value is not None:
                points[name, int(step)] = int(step), epoch, name, value
    return list(points.values())


# As the trainer writes them if they are finite. To parse all lines for these few numbers takes five
# times as long.
_LOGGED = re.compile(
    rb'"(?:time/(\w+_ms)|train/(images_per_second|peak_memory_mib))":'
    rb" ?(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)[,}]"
)


def _spent(folder: RunFolder) -> list[tuple[str, float]]:
    """The costs of a run by name, and `spent`, its seconds; empty if it has not trained."""
    logged: dict[bytes, list[float]] = {}
    for phase, other, digits in _LOGGED.findall(_whole_lines(folder)):
        logged.setdefault(phase or other, []).append(float(digits))
    if not logged:
        return []
    found = {name.decode(): statistics.median(values) for name, values in logged.items()}
    if b"peak_memory_mib" in logged:
        found["peak_memory_mib"] = max(logged[b"peak_memory_mib"])
    found |= _told(folder.status_file, "spent")
    found |= _told(folder.results_file, "train_seconds")
    return list(found.items())


def _told(path: Path, name: str) -> dict[str, float]:
    """A number of a JSON file; empty if it lacks it."""
    try:
        record = read_json(path)
    except UserError:
        record = None
    held = record if isinstance(record, dict) else {}
    value = number(held.get(name))
    return {} if value is None else {name: value}


def _devices(run: Run) -> float:
    """What an hour of a run counts, as in `sweep.estimate`."""
    asked = run.resources
    if run.config.device == "cpu" or asked.get("gpus") == 0:
        return 1.0
    return asked.get("gpus", 1) * asked.get("nodes", 1) / asked.get("pack", 1)
