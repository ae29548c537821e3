"""The metrics of finished runs as a tidy table, and the runs that lack them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from densevit.config.evaluation_names import benchmark_names
from densevit.config.identity import SCHEMA_VERSION
from densevit.launch.run_state import MISSING, RunState, read_states
from densevit.results.collect.costs import costs
from densevit.results.collect.curves import curves
from densevit.results.collect.metrics_reader import repeat
from densevit.runs.records import Metrics, ResultsRecord
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError

__all__ = ["COVERED", "MEASURED", "collect", "costs", "coverage", "curves", "gather"]

MEASURED = ["run", "cell", "seed", "state", "benchmark", "metric", "value", "n"]
COVERED = ["run", "cell", "label", "seed", "state", "measured", "message"]

# Why a run without labels and probes has no results.
NOTHING_MEASURED = "its images have no labels; densevit eval RUN knn=FOLDER measures its features"


def collect(plan: Plan) -> pd.DataFrame:
    """Return all metrics of finished runs, one row per run, benchmark and metric (`MEASURED`).

    `metric` is top1 (percent) or another metric of `evaluate.metrics.score`; `n` is the benchmark's
    number of images. Runs that are not finished or have no readable results have no row: see
    `coverage`.
    """
    return gather(plan)[0]


def coverage(plan: Plan) -> pd.DataFrame:
    """Return the state of each planned run, one row per run (`COVERED`), in the plan's order.

    `measured` is true if the run's metrics are in `collect`; `message` says what failed, or which
    benchmarks are missing.
    """
    return gather(plan)[1]


def gather(
    plan: Plan, states: Mapping[str, RunState] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return `collect` and `coverage` of one reading of the run directories, so that they agree.

    `states` are the runs' states as a launcher knows them; without, those of the run directories.
    """
    states = read_states(plan) if states is None else states
    found = {run.id: _read_run(plan, run, states[run.id]) for run in plan.runs}
    return _measured(plan, found), _covered(plan, found)


class _Found(NamedTuple):
    """A run's state, a message about it, and its metrics.

    `columns` are benchmark, metric, value and n.
    """

    state: str
    message: str
    columns: Sequence[Sequence[Any]] = ((), (), (), ())

    @property
    def metrics(self) -> int:
        """The number of metrics."""
        return len(self.columns[0])


def _read_run(plan: Plan, run: Run, state: RunState) -> _Found:
    """Read a run's results."""
    file = plan.run_folder(run).results_file
    # Results are written at the end of training. A later failure, as of a benchmark that another
    # sweep adds, does not invalidate them.
    if "finished" not in (state.state, state.status.state):
        return _Found(state.state, state.why)
    try:
        results = plan.run_folder(run).results()
    except UserError as error:
        return _Found("failed", str(error))
    if results is None:
        return _Found("finished", f"{file}: no such file")
    if not benchmark_names(run.config):
        return _Found("finished", NOTHING_MEASURED)
    reason = _foreign(run, results)
    if reason:
        return _Found("finished", f"{file}: {reason}")
    columns = _columns(results["benchmarks"])
    names = results["benchmarks"].keys()
    missing = [name for name in benchmark_names(run.config) if name not in names]
    message = f"{MISSING}: {', '.join(missing)}" if missing else ""
    return _Found("finished", message, columns)


def _foreign(run: Run, results: ResultsRecord) -> str:
    """Return the reason why results do not belong to this run; empty if they do."""
    if results.get("run") != run.id:
        return f"holds run {results.get('run')!r}"
    version = results.get("schema_version")
    if version != SCHEMA_VERSION:
        return (
            f"has schema version {version}, not {SCHEMA_VERSION}: its settings mean something else"
        )
    for name, expected in (("cell", run.cell), ("seed", run.seed)):
        if results.get(name) != expected:
            return f"holds {name} {results.get(name)!r}, not {expected!r}"
    return ""


def _columns(benchmarks: Mapping[str, Metrics]) -> list[list[Any]]:
    """Return the columns benchmark, metric, value, n; many tuples would keep Python's garbage
    collector busy."""
    columns: list[list[Any]] = [[], [], [], []]
    for benchmark, numbers in benchmarks.items():
        named = {metric: _number(value) for metric, value in numbers.items() if metric != "n"}
        count = len(named)
        columns[0] += [benchmark] * count
        columns[1] += named
        columns[2] += named.values()
        columns[3] += [int(numbers.get("n", 0))] * count
    return columns


def _number(value: float) -> float:
    """Return a metric as a float; NaN if infinite, since a diverged run has no mean either way."""
    return float(value) if math.isfinite(value) else math.nan


def _measured(plan: Plan, found: dict[str, _Found]) -> pd.DataFrame:
    """Return `MEASURED` of the runs that have metrics."""
    runs = [run for run in plan.runs if found[run.id].metrics]
    counts = [found[run.id].metrics for run in runs]
    columns = [
        list(chain.from_iterable(found[run.id].columns[place] for run in runs))
        for place in range(4)
    ]
    return pd.DataFrame(
        {
            "run": repeat([run.id for run in runs], counts),
            "cell": repeat([run.cell for run in runs], counts),
            "seed": np.repeat(np.array([run.seed for run in runs], np.int64), counts),
            "state": repeat(["finished"], [sum(counts)]),
            "benchmark": pd.array(columns[0], "str"),
            "metric": pd.array(columns[1], "str"),
            "value": np.array(columns[2], np.float64),
            "n": np.array(columns[3], np.int64),
        }
    )


def _covered(plan: Plan, found: dict[str, _Found]) -> pd.DataFrame:
    labels = {run.cell: plan.label(run) for run in plan.grid.cells}
    rows = []
    for run in plan.runs:
        one = found[run.id]
        rows.append(
            (run.id, run.cell, labels[run.cell], run.seed, one.state, one.metrics > 0, one.message)
        )
    return pd.DataFrame(rows, columns=COVERED)
