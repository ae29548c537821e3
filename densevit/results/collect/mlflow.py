"""A sweep's metrics from an MLflow store, as its runs were mirrored there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from densevit.results.collect.numbers import MEASURED
from densevit.tracking.mlflow_fields import RUN, SWEEPS
from densevit.tracking.store import all_pages, open_store
from densevit.tracking.store_uri import database_file
from densevit.utils.errors import UserError, nearest, reason_of
from densevit.utils.redact import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

# Prefixes of metrics that are no benchmarks.
_LOGGED = ("train", "time", "health", "watch", "system")


def from_mlflow(uri: str, sweep: str) -> pd.DataFrame:
    """Return every metric of a sweep's finished runs, in the form of `collect` (`MEASURED`).

    `uri` is a tracking URI, such as sqlite:////outputs/mlflow.db or http://host:5000. Rows are
    sorted by seed, cell, benchmark and metric. The mirror does not send everything: `n` is NaN, and
    there is no metric `ways`.
    Errors: `UserError` for a store that is missing or does not answer, and for a sweep that it does
    not know or that was deleted in it.
    """
    if not uri.strip():
        raise UserError("--tracking-uri: expected the URI of an MLflow store, found none")
    place = without_password(uri)
    database = database_file(uri)
    if database is not None and not database.exists():  # opening it would create it
        raise UserError(f"{place}: there is no MLflow store")
    try:
        client = open_store(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = [run for run in _search(client, experiments, RUN) if sweep in _sweeps(run)]
        # The newest of a run that was trained more than once, again or by several people.
        found.sort(key=lambda run: run.info.start_time)
        runs = list({run.data.tags[RUN]: run for run in found}.values())
        if not runs:
            raise UserError(f"{place}: {_why_none(client, experiments, sweep)}")
    except UserError:
        raise
    except Exception as error:  # errors of MLflow or of a database driver
        reason = reason_of(error)
        raise UserError(f"{place}: MLflow does not answer: {reason}") from None
    return _frame(runs)


def _frame(runs: Sequence[MlflowRun]) -> pd.DataFrame:
    rows = [row for run in runs if run.info.status == "FINISHED" for row in _rows(run)]
    kinds = {"seed": "int64", "value": "float64", "n": "float64"}
    frame = pd.DataFrame(rows, columns=MEASURED)
    frame = frame.astype({name: kinds.get(name, "str") for name in MEASURED})
    return frame.sort_values(["seed", "cell", "benchmark", "metric"], ignore_index=True)


def _rows(run: MlflowRun) -> Iterator[tuple[Any, ...]]:
    tags = run.data.tags
    about = tags[RUN], tags.get("densevit.cell", ""), int(run.data.params["seed"]), "finished"
    for key, value in run.data.metrics.items():
        benchmark, _, metric = key.partition("/")
        if metric and benchmark not in _LOGGED:
            yield *about, benchmark, metric, float(value), float("nan")


def _search(
    client: MlflowClient, experiments: Sequence[str], tag: str, deleted: bool = False
) -> Iterator[MlflowRun]:
    """Yield all runs that have a tag."""
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    if experiments:
        yield from all_pages(client.search_runs, list(experiments), f"tags.`{tag}` LIKE '%'", view)


def _sweeps(run: MlflowRun) -> list[str]:
    return run.data.tags.get(SWEEPS, "").split(",")


def _why_none(client: MlflowClient, experiments: Sequence[str], sweep: str) -> str:
    deleted = _search(client, experiments, RUN, deleted=True)
    if any(sweep in _sweeps(run) for run in deleted):
        return f"the runs of sweep {sweep!r} were deleted there; `mlflow gc` has not removed them"
    names = {name for run in _search(client, experiments, RUN) for name in _sweeps(run) if name}
    return f"no runs of a sweep {sweep!r}; {nearest(sweep, names)}"
