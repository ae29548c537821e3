"""An MLflow store: open it, find or create experiments and runs."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from densevit.tracking.mlflow_fields import BEGUN
from densevit.tracking.moved_outputs import artifact_location, repoint
from densevit.tracking.store_uri import database_file, is_database
from densevit.utils.console import warn

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities import Run as MlflowRun
    from mlflow.store.entities import PagedList

_T = TypeVar("_T")
PAGE = 1000  # results per request, MLflow's default
_CONNECT_SECONDS = 10
WARN_SECONDS = 30.0  # of waiting for a lock, before a warning


class DeletedInStore(Exception):
    """Something is not sent because a user has deleted it in MLflow; says how to restore it."""

    @classmethod
    def by_name(cls, name: str) -> DeletedInStore:
        return cls(f"was deleted in MLflow; densevit sync {name} restores it")


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file for this process; unless `wait`, yield False if another one has it.

    A long wait is reported on a terminal: the process that holds the lock may be suspended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            warning = threading.Timer(WARN_SECONDS, _warn_of_waiting, [path])
            warning.daemon = True
            warning.start()
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            finally:
                warning.cancel()
        yield True


def _warn_of_waiting(path: Path) -> None:
    if sys.stderr.isatty():
        text = f"warning: waiting for {path}, which another process that mirrors runs has locked"
        warn(text)


@contextmanager
def opened(uri: str, outputs: Path) -> Iterator[MlflowClient]:
    """Yield a client of a store.

    The tables of a database are created under a lock: two processes that create them together
    break it. For SQLite, the lock is held during the block: it allows one writer.
    """
    database = database_file(uri)
    if not is_database(uri):
        yield open_store(uri)
    elif database is not None:
        with file_lock(database.with_suffix(".lock")):
            client = open_store(uri)
            repoint(database, outputs)
            yield client
    else:
        with file_lock(outputs / "mlflow.lock"):
            client = open_store(uri)
            client.search_experiments(max_results=1)
        yield client


def open_store(uri: str) -> MlflowClient:
    """Return a client; the first one on an SQLite file creates its tables."""
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # The mirror retries by itself, and must not hang in a call while the runs go on.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    for name in ("urllib3", "mlflow.store.db.utils"):  # they log each retry
        logging.getLogger(name).setLevel(logging.ERROR)
    if is_database(uri):
        _connect_once(uri)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _connect_once(uri: str) -> None:
    """Connect to a database once: MLflow would retry for minutes. Errors: its driver's."""
    database = database_file(uri)
    if database is not None:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")
        return
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.pool import NullPool

    timed = make_url(uri).get_backend_name() in ("postgresql", "mysql")
    given = {"connect_timeout": _CONNECT_SECONDS} if timed else {}
    create_engine(uri, poolclass=NullPool, connect_args=given).connect().close()


def find_or_create_experiment(
    client: MlflowClient, name: str, outputs: Path, uri: str, restore: bool = False
) -> str:
    """Return the id of an experiment; create it if missing. Errors: see `require_experiment`."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server has its own artifact location; a database has none.
        location = artifact_location(outputs) if is_database(uri) else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except Exception:  # another machine may have created it first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    require_experiment(client, found, restore)
    return found.experiment_id


def require_experiment(client: MlflowClient, experiment: Experiment, restore: bool) -> None:
    """Restore an experiment if it was deleted. Errors: `DeletedInStore` if `restore` is False."""
    if experiment.lifecycle_stage == "active":
        return
    if not restore:
        text = (
            f"experiment {experiment.name!r} was deleted in MLflow; densevit sync NAME restores it"
        )
        raise DeletedInStore(text)
    client.restore_experiment(experiment.experiment_id)


@dataclass(frozen=True)
class RunKey:
    """The key of one of our runs or sweeps: the value of a tag, and `begun`, when it began.

    The same run, trained in another folder, by another user or anew, began at another time.
    """

    tag: str
    value: str
    begun: str

    def matches(self, run: MlflowRun) -> bool:
        tags = run.data.tags
        return tags.get(self.tag) == self.value and tags.get(BEGUN, "") == self.begun


_CREATED = "densevit.made"  # a tag: when the run was created in the store, in nanoseconds


def find_run(
    client: MlflowClient, experiment: str, key: RunKey, mlflow_id: str | None, restore: bool
) -> MlflowRun | None:
    """Return the run of a key, by its recorded id if that still fits; None if there is none.

    Of several that machines have created at the same time, the first is kept, the others deleted.
    Errors: `DeletedInStore` if it was deleted and `restore` is False.
    """
    run = run_by_id(client, mlflow_id)  # may be of an older version, without `begun`
    if run is None or run.data.tags.get(key.tag) != key.value:
        found = _runs_by_key(client, experiment, key)
        active = [run for run in found if run.info.lifecycle_stage == "active"]
        for duplicate in active[1:] if key.begun else ():
            client.delete_run(duplicate.info.run_id)
        run = next(iter(active or found), None)
    if run is None or run.info.lifecycle_stage == "active":
        return run
    if not restore:
        raise DeletedInStore.by_name(key.value)
    client.restore_run(run.info.run_id)
    return client.get_run(run.info.run_id)


def create_run(
    client: MlflowClient, experiment: str, key: RunKey, title: str, start: int | None
) -> MlflowRun:
    """Create a run, or return the one that another machine has created at the same time.

    Clocks may differ on which one was first: search for it again later.
    """
    tags = {key.tag: key.value, BEGUN: key.begun, _CREATED: str(time.time_ns())}
    created = client.create_run(experiment, start, tags, title)
    return find_run(client, experiment, key, None, False) or created


def _runs_by_key(client: MlflowClient, experiment: str, key: RunKey) -> list[MlflowRun]:
    """Return the runs of a key, also deleted ones, in the order of their creation."""
    from mlflow.entities import ViewType

    query = f"tags.`{key.tag}` = '{key.value}'"
    found = client.search_runs([experiment], query, ViewType.ALL, max_results=PAGE)
    return sorted(filter(key.matches, found), key=lambda run: int(run.data.tags.get(_CREATED, "0")))


def run_by_id(client: MlflowClient, mlflow_id: str | None) -> MlflowRun | None:
    """Return a run of the store by its id, None if it is not there."""
    from mlflow.exceptions import MlflowException

    if mlflow_id is None:
        return None
    try:
        return client.get_run(mlflow_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def active_runs(
    client: MlflowClient, experiments: Iterable[str], mlflow_ids: Iterable[str]
) -> dict[str, MlflowRun]:
    """Return those of some runs that the store has and that are not deleted, by their ids."""
    ids, found = sorted(mlflow_ids), {}
    for start in range(0, len(ids), PAGE):
        some = ids[start : start + PAGE]
        query = f"attributes.run_id IN ({', '.join(map(repr, some))})"
        for run in client.search_runs(list(experiments), query, max_results=PAGE):
            found[run.info.run_id] = run
    return found


def all_pages(search: Callable[..., PagedList[_T]], *given: Any, **options: Any) -> Iterator[_T]:
    """Yield the results of a search method of an MLflow client, page by page."""
    token = None
    while True:
        page = search(*given, **options, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def describe(
    client: MlflowClient, run: MlflowRun, params: dict[str, str], tags: dict[str, str]
) -> None:
    """Add the parameters that are missing (they never change) and the tags that differ."""
    from mlflow.entities import Param, RunTag

    missing = [Param(k, v) for k, v in params.items() if k not in run.data.params]
    other = [RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v]
    for start in range(0, max(len(missing), len(other)), 100):  # MLflow's limit per call
        some = slice(start, start + 100)
        client.log_batch(run.info.run_id, params=missing[some], tags=other[some], synchronous=True)
