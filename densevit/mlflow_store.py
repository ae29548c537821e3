"""An MLflow store: opening it without harm, and finding or making things in it."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


def database_file(uri: str) -> Path | None:
    """The file of an SQLite store, None for another store."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix).partition("?")[0]) if uri.startswith(prefix) else None


def without_password(text: str) -> str:
    """Text whose addresses have lost their `user:password@`."""
    return re.sub(r"//[^/@\s]+@", "//", text)


@contextmanager
def alone(outputs: Path, uri: str) -> Iterator[None]:
    """One mirror at a time: two that make a new SQLite store together break it."""
    database = database_file(uri)
    lock = outputs / "mlflow.lock" if database is None else database.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_store(uri: str) -> MlflowClient:
    """A client; the first one on an SQLite file makes its tables."""
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # The mirror tries again by itself, and must not hang in a call while the runs go on.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def find_or_make_experiment(client: MlflowClient, name: str, outputs: Path, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    local = database_file(uri) is not None
    place = (outputs.absolute() / "mlartifacts").as_uri() if local else None
    return client.create_experiment(name, artifact_location=place)


def find_living(client: MlflowClient, mlflow_id: str | None) -> MlflowRun | None:
    """A run of the store by its id, None if it is gone or deleted."""
    from mlflow.exceptions import MlflowException

    if mlflow_id is None:
        return None
    try:
        run = client.get_run(mlflow_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def find_tagged(client: MlflowClient, experiment: str, tag: str, value: str) -> MlflowRun | None:
    wanted = f"tags.`{tag}` = '{value}'"
    found = client.search_runs([experiment], wanted, order_by=["start_time"], max_results=1)
    return found[0] if found else None


def describe(
    client: MlflowClient, run: MlflowRun, params: dict[str, str], tags: dict[str, str]
) -> None:
    """Add the parameters that are missing (they never change) and the tags that differ."""
    from mlflow.entities import Param, RunTag

    missing = [Param(k, v) for k, v in params.items() if k not in run.data.params]
    other = [RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v]
    if missing or other:
        client.log_batch(run.info.run_id, params=missing, tags=other)
