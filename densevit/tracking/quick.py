"""Which runs an MLflow store has, asked without MLflow: its import takes longer than the question.

None, where this cannot tell, leaves it to MLflow.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from densevit.tracking.store import database_file, is_server

_PAGE = 1000
_SECONDS = 20.0


class Standing(NamedTuple):
    """A run as a store has it: MLflow's status, and the last step of each metric."""

    status: str
    last_steps: Mapping[str, int]


def living_runs(uri: str, experiments: Iterable[str]) -> dict[str, Standing] | None:
    """The runs in some experiments that are not deleted, by MLflow's id; None: not to be told."""
    database = database_file(uri)
    if database is not None:
        return _in_sqlite(database)
    return _on_server(uri, sorted(set(experiments))) if is_server(uri) else None


def _in_sqlite(database: Path) -> dict[str, Standing] | None:
    if not database.exists():
        return None
    runs = "SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active'"
    steps = "SELECT run_uuid, key, step FROM latest_metrics"
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as store:
            found = {run: Standing(status, {}) for run, status in store.execute(runs)}
            for run, key, step in store.execute(steps):
                if run in found:
                    found[run].last_steps[key] = step
            return found
    except sqlite3.Error:
        return None


def _on_server(uri: str, experiments: list[str]) -> dict[str, Standing] | None:
    if not experiments:
        return {}
    import requests

    try:
        return {run["info"]["run_id"]: _standing(run) for run in _searched(uri, experiments)}
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return None


def _standing(run: dict[str, Any]) -> Standing:
    metrics = run["data"].get("metrics", [])
    return Standing(run["info"]["status"], {m["key"]: int(m.get("step", 0)) for m in metrics})


def _searched(uri: str, experiments: list[str]) -> Iterator[dict[str, Any]]:
    """All runs that are not deleted, a page after the other."""
    import requests

    address = f"{uri.rstrip('/')}/api/2.0/mlflow/runs/search"
    wanted: dict[str, Any] = {"experiment_ids": experiments, "max_results": _PAGE}
    with requests.Session() as session:
        _authenticate(session)
        while True:
            answer = session.post(address, json=wanted, timeout=_SECONDS)
            answer.raise_for_status()
            page = answer.json()
            yield from page.get("runs", [])
            wanted["page_token"] = page.get("next_page_token")
            if not wanted["page_token"]:
                return


def _authenticate(session: Any) -> None:
    """By the variables that MLflow's own client takes."""
    user, password, token, certificate = (
        os.environ.get(f"MLFLOW_TRACKING_{name}", "")
        for name in ("USERNAME", "PASSWORD", "TOKEN", "SERVER_CERT_PATH")
    )
    if user:
        session.auth = user, password
    elif token:
        session.headers["Authorization"] = f"Bearer {token}"
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        session.verify = False
    elif certificate:
        session.verify = certificate
