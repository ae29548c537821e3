"""An MLflow store: which one, whether it can be used, and finding or making things in it."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from densevit.errors import UserError, nearest
from densevit.passwords import without_password
from densevit.tracking.shown import BEGUN

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities import Run as MlflowRun

SERVERS = ("http", "https")
_SQLITE = "sqlite:///"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_OTHERS = ("databricks", "databricks-uc")  # alone, or before ://PROFILE
# Where a file lock does not hold for all machines, SQLite loses its data.
_NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "fhgfs", "cifs", "smb3", "smbfs", "ceph",
    "glusterfs", "afs", "9p", "panfs", "orangefs", "pvfs2", "wekafs", "daos", "fuse.sshfs",
    "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.beegfs", "fuse.juicefs", "fuse.s3fs",
    "fuse.gcsfuse",
}  # fmt: skip
_KNOCK_SECONDS = 10
TELL_SECONDS = 30.0  # of waiting for a lock
_WAYS_OUT = (
    "an MLflow server (docs/tracking.md), MLFLOW_TRACKING_URI=sqlite:////a/local/disk/mlflow.db, "
    "or --no-tracking and densevit sync later"
)


class Left(Exception):
    """Something is not sent because a person has deleted it in MLflow, and how it comes back."""


def store_uri(outputs: Path) -> str:
    """$MLFLOW_TRACKING_URI, else an SQLite file in the outputs folder."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"sqlite:///{outputs.absolute() / 'mlflow.db'}"
    database = database_file(given)
    if database is None or not database.name:
        return given
    # Other processes, which are told of it, may stand in other folders.
    return f"{_SQLITE}{database.absolute()}{''.join(given.partition('?')[1:])}"


def database_file(uri: str) -> Path | None:
    """The file of an SQLite store, None for another store."""
    path = uri.removeprefix(_SQLITE).partition("?")[0]
    return Path(path) if uri.startswith(_SQLITE) else None


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in SERVERS


def is_database(uri: str) -> bool:
    """Whether a store is a database that each process opens itself."""
    return not is_server(uri) and uri.partition(":")[0] not in _OTHERS


def require_usable(uri: str) -> None:
    """Refuse a URI that is none, and SQLite where it would lose data; asks no server.

    Errors: `UserError` with the way out.
    """
    if uri in _OTHERS:
        return
    told = without_password(uri)
    try:
        scheme, host = urlsplit(uri).scheme, urlsplit(uri).hostname
    except ValueError as error:
        raise UserError(f"MLflow store {told}: {error}") from None
    kind = scheme.partition("+")[0]
    if scheme == "file" or not scheme:
        raise UserError(
            f"MLflow store {told}: MLflow keeps no runs in folders any more; give sqlite:///FILE, "
            f"or http://HOST:PORT of a server"
        )
    known = (*SERVERS, *_DATABASES, *_OTHERS)
    if kind not in known:
        raise UserError(f"MLflow store {told}: unknown kind {scheme!r}; {nearest(scheme, known)}")
    if kind in SERVERS and not host:
        raise UserError(f"MLflow store {told}: names no host; write http://HOST:PORT")
    if kind in SERVERS and not _has_good_port(uri):
        raise UserError("MLflow store: its port is none; / in a password is written %2F")
    database = database_file(uri)
    if kind == "sqlite" and (database is None or not database.name):
        raise UserError(f"MLflow store {told}: names no file; write sqlite:////FOLDER/mlflow.db")
    if database is not None:
        if "%" in str(database) or "/" in uri.partition("?")[2]:
            odd = "%" if "%" in str(database) else "?"
            raise UserError(
                f"MLflow store {told}: MLflow misreads {odd!r} in a path; use {_WAYS_OUT}"
            )
        _require_local(database)


def _has_good_port(uri: str) -> bool:
    """False where what stands in its place is a part of a password, which has a slash."""
    parts = urlsplit(uri)
    try:
        return parts.port != 0 and ("@" in parts.netloc or "@" not in parts.path)
    except ValueError:
        return False


def _require_local(database: Path) -> None:
    kind = file_system(database)
    if kind in _NETWORK:
        raise UserError(
            f"MLflow store {database}: SQLite is not safe on a network file system ({kind}); "
            f"use {_WAYS_OUT}"
        )
    if database.is_dir():
        raise UserError(f"MLflow store {database}: is a folder and no file")


def file_system(path: Path) -> str:
    """The type of the file system that a file is on, or will be; empty where nobody says so."""
    import psutil

    place = path.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if place.is_relative_to(m.mountpoint)]
    # Of two at one place the later one is seen: a sort keeps their order.
    mounts.sort(key=lambda mount: len(mount.mountpoint))
    return mounts[-1].fstype if mounts else ""


@contextmanager
def alone(path: Path, *, patient: bool = True) -> Iterator[bool]:
    """Hold a lock file for this process; without patience yields False if another one has it.

    Who looks on is told of a long wait: what holds it may be stopped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not patient:
                yield False
                return
            telling = threading.Timer(TELL_SECONDS, _tell_of_waiting, [path])
            telling.daemon = True
            telling.start()
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            finally:
                telling.cancel()
        yield True


def _tell_of_waiting(path: Path) -> None:
    if not sys.stderr.isatty():
        return
    told = f"warning: waiting for {path}, which another process holds: one that mirrors runs"
    print(told, file=sys.stderr, flush=True)


@contextmanager
def opened(uri: str, outputs: Path) -> Iterator[MlflowClient]:
    """A client of a store; of a database that processes open themselves, the first one makes the
    tables, alone: two that make them together break it. SQLite is held on to: it has one writer."""
    database = database_file(uri)
    if not is_database(uri):
        yield open_store(uri)
    elif database is not None:
        with alone(database.with_suffix(".lock")):
            yield open_store(uri)
    else:
        with alone(outputs / "mlflow.lock"):
            client = open_store(uri)
            client.search_experiments(max_results=1)
        yield client


def open_store(uri: str) -> MlflowClient:
    """A client; the first one on an SQLite file makes its tables."""
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # The mirror tries again by itself, and must not hang in a call while the runs go on.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    for name in ("urllib3", "mlflow.store.db.utils"):  # which tell each try
        logging.getLogger(name).setLevel(logging.ERROR)
    if is_database(uri):
        _knock(uri)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _knock(uri: str) -> None:
    """Connect to a database once: MLflow would try for minutes. Errors: its driver's."""
    database = database_file(uri)
    if database is not None:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")
        return
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.pool import NullPool

    timed = make_url(uri).get_backend_name() in ("postgresql", "mysql")
    given = {"connect_timeout": _KNOCK_SECONDS} if timed else {}
    create_engine(uri, poolclass=NullPool, connect_args=given).connect().close()


def find_or_make_experiment(
    client: MlflowClient, name: str, outputs: Path, uri: str, restore: bool = False
) -> str:
    """The id of an experiment. Errors: `Left` if it was deleted and shall not be restored."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server has a place of its own; a database knows of none.
        place = (outputs.absolute() / "mlartifacts").as_uri() if is_database(uri) else None
        try:
            return client.create_experiment(name, artifact_location=place)
        except Exception:  # another machine may have been quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    require_experiment(client, found, restore)
    return found.experiment_id


def require_experiment(client: MlflowClient, found: Experiment, restore: bool) -> None:
    """Errors: `Left` if an experiment was deleted and shall not be restored."""
    if found.lifecycle_stage == "active":
        return
    if not restore:
        told = f"experiment {found.name!r} was deleted in MLflow"
        raise Left(f"{told}; densevit sync NAME restores it")
    client.restore_experiment(found.experiment_id)


@dataclass(frozen=True)
class Name:
    """By what a run of ours is found: a tag of this value, and `begun`, when that began.

    The same run that is trained in another folder, by somebody else or anew, began at another time.
    """

    tag: str
    value: str
    begun: str

    def fits(self, run: MlflowRun) -> bool:
        tags = run.data.tags
        return tags.get(self.tag) == self.value and tags.get(BEGUN, "") == self.begun


_MADE = "densevit.made"


def find_run(
    client: MlflowClient, experiment: str, name: Name, held: str | None, restore: bool
) -> MlflowRun | None:
    """The run of a name, by its remembered id if it has it still; None if there never was one.

    Of several that machines have made at the same time, the first is taken and the others go.
    Errors: `Left` if it was deleted and shall not be restored.
    """
    run = by_id(client, held)  # which an older version may have made, that noted no beginning
    if run is None or run.data.tags.get(name.tag) != name.value:
        found = _named(client, experiment, name)
        living = [run for run in found if run.info.lifecycle_stage == "active"]
        for other in living[1:] if name.begun else ():
            client.delete_run(other.info.run_id)
        run = next(iter(living or found), None)
    if run is None or run.info.lifecycle_stage == "active":
        return run
    if not restore:
        raise Left(f"was deleted in MLflow; densevit sync {name.value} restores it")
    client.restore_run(run.info.run_id)
    return client.get_run(run.info.run_id)


def make_run(
    client: MlflowClient, experiment: str, name: Name, title: str, started: int | None
) -> MlflowRun:
    """A new run, or the one that another machine has made at the same time.

    Which of the two it is, clocks may see differently: it should be looked for again later.
    """
    tags = {name.tag: name.value, BEGUN: name.begun, _MADE: str(time.time_ns())}
    made = client.create_run(experiment, started, tags, title)
    return find_run(client, experiment, name, None, False) or made


def _named(client: MlflowClient, experiment: str, name: Name) -> list[MlflowRun]:
    """The runs of a name, deleted ones too; the one that was made first at the front."""
    from mlflow.entities import ViewType

    wanted = f"tags.`{name.tag}` = '{name.value}'"
    found = client.search_runs([experiment], wanted, ViewType.ALL, max_results=1000)
    return sorted(filter(name.fits, found), key=lambda run: int(run.data.tags.get(_MADE, "0")))


def by_id(client: MlflowClient, mlflow_id: str | None) -> MlflowRun | None:
    """A run of the store by its id, None if it is not there."""
    from mlflow.exceptions import MlflowException

    if mlflow_id is None:
        return None
    try:
        return client.get_run(mlflow_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def describe(
    client: MlflowClient, run: MlflowRun, params: dict[str, str], tags: dict[str, str]
) -> None:
    """Add the parameters that are missing (they never change) and the tags that differ."""
    from mlflow.entities import Param, RunTag

    missing = [Param(k, v) for k, v in params.items() if k not in run.data.params]
    other = [RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v]
    for some, others in zip_longest(_hundreds(missing), _hundreds(other), fillvalue=()):
        client.log_batch(run.info.run_id, params=some, tags=others, synchronous=True)


def _hundreds(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + 100] for i in range(0, len(items), 100)]
