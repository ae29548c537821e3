"""Check that everything of runs and sweeps was sent: by small files, and for a mirror by the store.

A run that was sent completely is not sent again while the store still has it: in a sweep of
thousands, these are nearly all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from densevit.runs.directory import RunFolder, run_folder
from densevit.tracking import mlflow_fields, sync_state
from densevit.tracking.mlflow_fields import SweepInfo
from densevit.tracking.mlflow_run import FINAL, steps_of
from densevit.tracking.mlflow_sweep import ParentRun, sweep_state
from densevit.tracking.store import active_runs
from densevit.tracking.store_uri import database_file, store_uri
from densevit.utils.errors import UserError
from densevit.utils.redact import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

_IDS = {"experiment_id", "mlflow_run_id"}


def up_to_date(
    outputs: Path, run_ids: Iterable[str], sweep: str | None = None, *, retry_models: bool = False
) -> bool:
    """Return whether the runs and the sweep were sent completely; False while a run works.

    A run that has not started has nothing to send. `retry_models`: a network that could not be
    exported is to be tried again.
    """
    uri = store_uri(outputs)
    database = database_file(uri)
    if database is not None and not database.exists():
        return False
    store, ids = without_password(uri), list(run_ids)
    folders = (run_folder(outputs, run_id) for run_id in ids)
    started = [folder for folder in folders if folder.provenance_file.exists()]
    sweep_info = None if sweep is None else mlflow_fields.read_sweep_info(outputs, sweep)
    if not all(is_sent(folder, store, sweep_info, retry_models) for folder in started):
        return False
    if sweep_info is None or not started:
        return True
    record = sync_state.read_parent_record(sweep_info, store)
    state, _ = sweep_state(outputs, sweep_info, ids)
    files = sync_state.parent_files(sweep_info)
    return (record.get("status"), record.get("files")) == (state, files)


def is_sent(
    folder: RunFolder, store: str, sweep_info: SweepInfo | None, retry_models: bool
) -> bool:
    """Return whether a run has ended and was sent completely, as a run of the sweep."""
    record = sync_state.read_record(folder, store)
    done = ("logged",) if retry_models else ("logged", "refused")
    try:
        state = folder.remote_status().state
        files = sync_state.file_stamps(folder, state, sweep_info)
        size = folder.metrics_file.stat().st_size if folder.metrics_file.exists() else 0
        return (
            state in FINAL
            and (record.get("state"), record.get("offset")) == (state, size)
            and (
                sweep_info is None
                or record["sweeps"].get(sweep_info.name)
                == mlflow_fields.plan_entry_digest(folder, sweep_info)
            )
            and all(record["files"].get(name) == stamp for name, (_, stamp) in files.items())
            and (state != "finished" or not record["wants_model"] or record["model"] in done)
        )
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def complete_runs(
    client: MlflowClient, folders: Iterable[RunFolder], uri: str, parent: ParentRun | None,
    retry_models: bool,
) -> tuple[set[str], MlflowRun | None]:  # fmt: skip
    """Return the ids of those runs of which the store has everything, and the sweep's parent run.

    The records tell which were sent completely; one query tells whether the store has these still:
    it may have been emptied or reset to an older state.
    """
    parent_record = {} if parent is None else parent.record()
    if parent is not None and not parent_record.keys() >= _IDS:
        return set(), None  # any run that is sent creates the parent run
    records, store = {}, without_password(uri)
    for folder in folders:
        record = sync_state.read_record(folder, store)
        if not record.keys() >= _IDS or record.get("fresh"):
            continue
        if is_sent(folder, store, None if parent is None else parent.info, retry_models):
            records[folder.path.name] = record
    if not records:
        return set(), None
    queried = [*records.values(), *([parent_record] if parent else [])]
    stored = active_runs(
        client,
        {record["experiment_id"] for record in queried},
        {record["mlflow_run_id"] for record in queried},
    )
    parent_run = stored.get(parent_record.get("mlflow_run_id", ""))
    if parent is not None and parent_run is None:
        return set(), None  # the runs need a new parent run
    complete = {
        run_id
        for run_id, record in records.items()
        if (run := stored.get(record["mlflow_run_id"])) is not None
        and (run.info.status, steps_of(run)) == (record.get("status"), record.get("last_steps"))
    }
    return complete, parent_run


def is_recorded_running(folder: RunFolder, store: str) -> bool:
    """Return whether a run is recorded as running in the store but has ended."""
    record = sync_state.read_record(folder, store)
    try:
        return record.get("state") == "running" and folder.remote_status().state in FINAL
    except UserError:
        return False


def is_sweep_recorded_running(
    outputs: Path, sweep: str, store: str, run_ids: Sequence[str]
) -> bool:
    """Return whether a sweep is recorded as running in the store but is not."""
    sweep_info = mlflow_fields.read_sweep_info(outputs, sweep)
    if sync_state.read_parent_record(sweep_info, store).get("status") != "RUNNING":
        return False
    return sweep_state(outputs, sweep_info, run_ids)[0] != "RUNNING"
