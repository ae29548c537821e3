"""Training curves: the logged metrics of runs over the steps."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from itertools import chain

import numpy as np
import pandas as pd

from densevit.results.collect.metrics_reader import parse_lines, repeat
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import finite, number
from densevit.sweep.plan import Plan

CURVES = ["run", "cell", "seed", "step", "epoch", "name", "value"]


def curves(plan: Plan, names: Sequence[str], cells: Collection[str] | None = None) -> pd.DataFrame:
    """Return logged metrics over the steps, one row per point (`CURVES`).

    `names` are keys of metrics.jsonl, such as val/top1 (percent), train/loss, health/patch_rank or
    watch/imagenet-a/top1; `cells` are ids, None for all. Failed and running runs are included up to
    their last step; `coverage` says which runs these are. If a step was logged twice under a name,
    the later value counts. Where a run diverged, the value is NaN or infinite. Unreadable lines are
    skipped.
    """
    runs = [run for run in plan.runs if cells is None or run.cell in cells]
    keys = sorted(set(names))
    pattern = re.compile(b"|".join(re.escape(json.dumps(k).encode()) for k in keys) or b"(?!)")
    found = [_points(plan.run_folder(run), pattern, keys) for run in runs]
    counts = [len(points) for points in found]
    table = pd.DataFrame(chain.from_iterable(found), columns=["step", "epoch", "name", "value"])
    table = table.astype({"step": "int64", "epoch": "float64", "name": "str", "value": "float64"})
    table.insert(0, "seed", np.repeat(np.array([run.seed for run in runs], np.int64), counts))
    table.insert(0, "cell", repeat([run.cell for run in runs], counts))
    table.insert(0, "run", repeat([run.id for run in runs], counts))
    return table


def _points(
    folder: RunFolder, pattern: re.Pattern[bytes], names: Collection[str]
) -> list[tuple[int, float, str, float]]:
    points: dict[tuple[str, int], tuple[int, float, str, float]] = {}
    for line in parse_lines(folder, pattern):
        step, epoch = finite(line.get("step")), finite(line.get("epoch"))
        if step is None or epoch is None:
            continue
        for name, logged in line.items():
            value = number(logged) if name in names else None
            if value is not None:
                points[name, int(step)] = int(step), epoch, name, value
    return list(points.values())
