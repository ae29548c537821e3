"""Run directories as tidy tables: what was measured, and what there is nothing to measure of."""

from __future__ import annotations

from typing import Any

import pandas as pd

from densevit.errors import UserError
from densevit.rundir import read_json
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.state import Standing, observe

MEASURED = ["run", "cell", "seed", "state", "benchmark", "metric", "value", "n"]
COVERED = ["run", "cell", "label", "seed", "state", "measured", "message"]


def collect(plan: Plan) -> pd.DataFrame:
    """Every number of the sweep's finished runs: a row a run, benchmark and metric (`MEASURED`).

    `metric` is top1 (percent) or another of `scores.score`; `n` is the benchmark's number of
    images. Runs that are not finished, or have no readable results, give no row: see `coverage`.
    """
    return gather(plan)[0]


def coverage(plan: Plan) -> pd.DataFrame:
    """What there is of each planned run: a row a run (`COVERED`), in the plan's order.

    `measured` tells whether the run's numbers are in `collect`; `message` says what went wrong.
    """
    return gather(plan)[1]


def gather(plan: Plan) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`collect` and `coverage` from one look at the run directories, so that they agree."""
    measured: list[tuple[Any, ...]] = []
    covered: list[tuple[Any, ...]] = []
    observed = observe(plan)
    for run in plan.runs:
        state, message, rows = _look(plan, run, observed.runs[run.id])
        measured += rows
        covered.append((run.id, run.cell, plan.label(run), run.seed, state, bool(rows), message))
    return pd.DataFrame(measured, columns=MEASURED), pd.DataFrame(covered, columns=COVERED)


def _look(plan: Plan, run: Run, standing: Standing) -> tuple[str, str, list[tuple[Any, ...]]]:
    """A run's state, its message, and its rows."""
    folder = plan.run_folder(run)
    try:
        # Results are written when training has ended: what follows, such as a benchmark that
        # another sweep adds and that fails, takes nothing from them.
        if "finished" not in (standing.state, standing.status.state):
            return standing.state, standing.why, []
        results = read_json(folder.results_file)
    except UserError as error:
        return "failed", str(error), []
    if results is None:
        return "finished", f"{folder.results_file}: no such file", []
    if results.get("run") != run.id:
        return "finished", f"{folder.results_file}: holds run {results.get('run')!r}", []
    run_columns = (run.id, run.cell, run.seed, "finished")
    try:
        rows = [
            (*run_columns, benchmark, metric, float(value), int(numbers["n"]))
            for benchmark, numbers in results["benchmarks"].items()
            for metric, value in numbers.items()
            if metric != "n"
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return "finished", f"{folder.results_file}: is not as it should be: {error!r}", []
    return "finished", "", rows
