"""Tracking URIs: the supported kinds, and a check that one works here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from densevit.utils.errors import UserError, nearest
from densevit.utils.redact import without_password

SERVERS = ("http", "https")
_SQLITE = "sqlite:///"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_OTHERS = ("databricks", "databricks-uc")  # alone, or before ://PROFILE

# SQLite loses data where a file lock does not hold across machines.
_NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "fhgfs", "cifs", "smb3", "smbfs", "ceph",
    "glusterfs", "afs", "9p", "panfs", "orangefs", "pvfs2", "wekafs", "daos", "fuse.sshfs",
    "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.beegfs", "fuse.juicefs", "fuse.s3fs",
    "fuse.gcsfuse",
}  # fmt: skip
_WAYS_OUT = (
    "an MLflow server (docs/tracking.md), MLFLOW_TRACKING_URI=sqlite:////a/local/disk/mlflow.db, "
    "or --no-tracking and densevit sync later"
)


def store_uri(outputs: Path) -> str:
    """Return $MLFLOW_TRACKING_URI, else an SQLite file in the outputs folder."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"sqlite:///{outputs.absolute() / 'mlflow.db'}"
    database = database_file(given)
    if database is None or not database.name:
        return given
    # Absolute: other processes that get it may have other working folders.
    return f"{_SQLITE}{database.absolute()}{''.join(given.partition('?')[1:])}"


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite store, None for another store."""
    path = uri.removeprefix(_SQLITE).partition("?")[0]
    return Path(path) if uri.startswith(_SQLITE) else None


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in SERVERS


def is_database(uri: str) -> bool:
    """Return whether a store is a database that each process opens itself."""
    return not is_server(uri) and uri.partition(":")[0] not in _OTHERS


def require_usable(uri: str) -> None:
    """Refuse an invalid URI, and SQLite where it would lose data; contacts no server.

    Errors: `UserError` with the way out.
    """
    if uri in _OTHERS:
        return
    unusual = re.search(r"\s|^[\w+]+:/(?!/)", uri) or ("@" in uri and "://" not in uri)
    if not uri.startswith("sqlite:") and unusual:
        # Not repeated: nobody can say where the password ends in such an address.
        raise UserError(
            "MLflow store: its address is not SCHEME://USER:PASSWORD@HOST; write a space in a "
            "password as %20, a / as %2F and an @ as %40"
        )
    shown = without_password(uri)
    try:
        scheme, host = urlsplit(uri).scheme, urlsplit(uri).hostname
    except ValueError as error:
        raise UserError(f"MLflow store {shown}: {error}") from None
    kind = scheme.partition("+")[0]
    if scheme == "file" or not scheme:
        raise UserError(
            f"MLflow store {shown}: MLflow no longer keeps runs in folders; give sqlite:///FILE "
            f"or http://HOST:PORT of a server"
        )
    known = (*SERVERS, *_DATABASES, *_OTHERS)
    if kind not in known:
        raise UserError(f"MLflow store {shown}: unknown kind {scheme!r}; {nearest(scheme, known)}")
    if kind in SERVERS and not host:
        raise UserError(f"MLflow store {shown}: names no host; write http://HOST:PORT")
    if kind in SERVERS and not _has_good_port(uri):
        raise UserError("MLflow store: its port is invalid; write / in a password as %2F")
    database = database_file(uri)
    if kind == "sqlite" and (database is None or not database.name):
        raise UserError(f"MLflow store {shown}: names no file; write sqlite:////FOLDER/mlflow.db")
    if database is not None:
        if "%" in str(database) or "/" in uri.partition("?")[2]:
            odd = "%" if "%" in str(database) else "?"
            raise UserError(
                f"MLflow store {shown}: MLflow misreads {odd!r} in a path; use {_WAYS_OUT}"
            )
        _require_local(database)


def _has_good_port(uri: str) -> bool:
    """Return whether the port is valid; it is not if an unquoted / in a password cuts the URI."""
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
        raise UserError(f"MLflow store {database}: is a folder, not a file")


def file_system(path: Path) -> str:
    """Return the type of the file system that a file is on, or will be; empty if unknown."""
    import psutil

    path = path.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if path.is_relative_to(m.mountpoint)]
    # Of two mounts at one path the later one counts: the sort is stable.
    mounts.sort(key=lambda mount: len(mount.mountpoint))
    return mounts[-1].fstype if mounts else ""
