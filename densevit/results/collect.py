"""Run directories as tidy tables: what was measured, and what there is nothing to measure of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from densevit.config import SCHEMA_VERSION
from densevit.data.names import benchmark_names
from densevit.errors import UserError
from densevit.results import kept
from densevit.results.course import costs, curves
from densevit.rundir import read_json
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.state import MISSING, Standing, observe

__all__ = ["COVERED", "MEASURED", "collect", "costs", "coverage", "curves", "gather"]

MEASURED = ["run", "cell", "seed", "state", "benchmark", "metric", "value", "n"]
COVERED = ["run", "cell", "label", "seed", "state", "measured", "message"]

_WORD = pa.dictionary(pa.int32(), pa.large_string())
_SCHEMA = pa.schema(
    [("benchmark", _WORD), ("metric", _WORD), ("value", pa.float64()), ("n", pa.int64())]
)


def collect(plan: Plan) -> pd.DataFrame:
    """Every number of the sweep's finished runs: a row a run, benchmark and metric (`MEASURED`).

    `metric` is top1 (percent) or another of `scores.score`; `n` is the benchmark's number of
    images. Runs that are not finished, or have no readable results, give no row: see `coverage`.
    """
    return gather(plan)[0]


def coverage(plan: Plan) -> pd.DataFrame:
    """What there is of each planned run: a row a run (`COVERED`), in the plan's order.

    `measured` tells whether the run's numbers are in `collect`; `message` says what went wrong, or
    what is still lacking.
    """
    return gather(plan)[1]


def gather(plan: Plan) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`collect` and `coverage` from one look at the run directories, so that they agree.

    The numbers of finished runs whose files are as they were are taken from a file in the plan's
    folder; the tables are the same without it.
    """
    file, about = plan.folder / "cache" / "collected", str(plan.folder)
    old, since = kept.read(file, about, _SCHEMA), kept.now()
    stamps = _stamps(plan)
    known = {run.id for run in plan.runs if old.has(run.id, stamps[run.id]) and _whole(run, old)}
    rest = tuple(run for run in plan.runs if run.id not in known)
    # What is complete is finished, whatever else is known of it: nobody else needs to be asked.
    observed = observe(replace(plan, grid=replace(plan.grid, runs=rest)))
    looks = {run.id: _look(plan, run, observed.runs[run.id]) for run in rest}
    measured = [run for run in plan.runs if run.id in known or looks[run.id].count]
    fresh = _fresh([run for run in measured if run.id not in known], looks, stamps)
    unfinished = {id for id in fresh.entries if not _is_over(observed.runs[id])}
    lasting = [run.id for run in measured if run.id not in unfinished]
    whole = kept.update(file, about, old, fresh, lasting, since)
    return _measured(measured, whole.taken([run.id for run in measured])), _covered(plan, looks)


class _Look(NamedTuple):
    """A run's state and what is to be said of it, its rows, and the benchmarks that it has."""

    state: str
    message: str
    rows: Sequence[list[Any]] = ()
    names: str = ""

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.rows[0]) if self.rows else 0


_KNOWN = _Look("finished", "")


def _stamps(plan: Plan) -> dict[str, kept.Stamp]:
    folders = {run.id: str(plan.run_folder(run).path) for run in plan.runs}
    return {
        id: kept.stamp((f"{path}/status.json", f"{path}/results.json"))
        for id, path in folders.items()
    }


def _whole(run: Run, old: kept.Kept) -> bool:
    """Whether the kept numbers are all that this plan wants: another benchmark may have been
    added."""
    return set(benchmark_names(run.config)) <= set(old.entries[run.id].note.split(","))


def _is_over(standing: Standing) -> bool:
    """Whether it follows from the run's files alone, as long as they stay as they are, that the run
    is finished: one that says `running` has a lock too."""
    return standing.state == "finished" and standing.status.state != "running"


def _look(plan: Plan, run: Run, standing: Standing) -> _Look:
    """What there is of a run."""
    file = plan.run_folder(run).results_file
    # Results are written when training has ended: what follows, such as a benchmark that
    # another sweep adds and that fails, takes nothing from them.
    if "finished" not in (standing.state, standing.status.state):
        return _Look(standing.state, standing.why)
    try:
        results = read_json(file)
    except UserError as error:
        return _Look("failed", str(error))
    if results is None:
        return _Look("finished", f"{file}: no such file")
    try:
        wrong = _foreign(run, results)
        if wrong:
            return _Look("finished", f"{file}: {wrong}")
        rows = _rows(results["benchmarks"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        return _Look("finished", f"{file}: is not as it should be: {error!r}")
    names = results["benchmarks"].keys()
    lacking = [name for name in benchmark_names(run.config) if name not in names]
    message = f"{MISSING}: {', '.join(lacking)}" if lacking else ""
    return _Look("finished", message, rows, ",".join(names))


def _foreign(run: Run, results: dict[str, Any]) -> str:
    """Why results are none of this run's; empty if they are."""
    if results.get("run") != run.id:
        return f"holds run {results.get('run')!r}"
    version = results["schema_version"]
    if version != SCHEMA_VERSION:
        return f"is of schema version {version}, and not {SCHEMA_VERSION}: it means other settings"
    for name, wanted in (("cell", run.cell), ("seed", run.seed)):
        if results.get(name) != wanted:
            return f"holds {name} {results.get(name)!r} and not {wanted!r}"
    return ""


def _rows(benchmarks: dict[str, dict[str, Any]]) -> list[list[Any]]:
    """The columns benchmark, metric, value, n: few lists, since many tuples keep Python's garbage
    collector busy."""
    columns: list[list[Any]] = [[], [], [], []]
    for benchmark, numbers in benchmarks.items():
        named = {metric: _number(value) for metric, value in numbers.items() if metric != "n"}
        count = len(named)
        columns[0] += [benchmark] * count
        columns[1] += named
        columns[2] += named.values()
        columns[3] += [int(numbers["n"])] * count
    return columns


def _number(value: Any) -> float:
    """NaN for infinity, too: a diverged run has no mean either way."""
    if not isinstance(value, int | float) or isinstance(value, bool):  # float() takes more
        raise TypeError(f"{value!r} is no number")
    return float(value) if math.isfinite(value) else math.nan


def _fresh(runs: list[Run], looks: dict[str, _Look], stamps: dict[str, kept.Stamp]) -> kept.Kept:
    """The rows of runs that were looked at."""
    entries, first = {}, 0
    for run in runs:
        look = looks[run.id]
        entries[run.id] = kept.Entry(stamps[run.id], first, look.count, look.names)
        first += look.count
    columns = [
        list(chain.from_iterable(looks[run.id].rows[place] for run in runs))
        for place in range(len(_SCHEMA))
    ]
    return kept.Kept(entries, kept.table(columns, _SCHEMA))


def _measured(runs: list[Run], whole: kept.Kept) -> pd.DataFrame:
    """`MEASURED` from the rows of these runs."""
    places = np.repeat(np.arange(len(runs)), whole.counts())
    rows = whole.rows
    columns = {
        "run": kept.words(places, [run.id for run in runs]),
        "cell": kept.words(places, [run.cell for run in runs]),
        "seed": np.array([run.seed for run in runs], np.int64)[places],
        "state": kept.words(np.zeros(len(places)), ["finished"]),
        "benchmark": rows["benchmark"].cast(pa.large_string()),
        "metric": rows["metric"].cast(pa.large_string()),
        "value": rows["value"],
        "n": rows["n"],
    }
    return pa.table(columns).to_pandas()


def _covered(plan: Plan, looks: dict[str, _Look]) -> pd.DataFrame:
    labels = {run.cell: plan.label(run) for run in plan.grid.cells}
    rows = []
    for run in plan.runs:
        look = looks.get(run.id, _KNOWN)
        measured = look is _KNOWN or look.count > 0
        rows.append(
            (run.id, run.cell, labels[run.cell], run.seed, look.state, measured, look.message)
        )
    return pd.DataFrame(rows, columns=COVERED)
