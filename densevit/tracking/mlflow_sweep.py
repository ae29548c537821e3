"""A sweep's parent run in an MLflow store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.runs.directory import RunFolder, run_folder
from densevit.runs.status import Status
from densevit.tracking import mlflow_fields, store, sync_state
from densevit.tracking.mlflow_fields import SweepInfo, first_start, milliseconds
from densevit.tracking.mlflow_run import FINAL, log_file, set_state
from densevit.tracking.store import DeletedInStore, RunKey, file_lock
from densevit.utils.errors import UserError
from densevit.utils.files import write_json
from densevit.utils.redact import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class Parent:
    """A sweep's parent run as the store has it."""

    id: str
    experiment: str
    status: str
    end_time: int | None
    new: bool  # just created: check once more that it is the only one

    @classmethod
    def of(cls, run: MlflowRun, *, new: bool = False) -> Parent:
        info = run.info
        return cls(info.run_id, info.experiment_id, info.status, info.end_time, new)


@dataclass
class ParentRun:
    """Finds, creates and updates the parent run of a sweep.

    `info`: the sweep as its plan, of `stamp`, has it; `parent`: the run, once it was found or
    created; `deleted`: why it is not shown.
    """

    outputs: Path
    uri: str
    run_ids: Sequence[str]
    restore: bool
    info: SweepInfo
    stamp: tuple[int, int] | None = None
    parent: Parent | None = None
    deleted: str = ""

    def read_plan(self) -> None:
        """Read the sweep's plan if it has changed: it may hold thousands of runs."""
        stamp = mlflow_fields.sweep_stamp(self.outputs, self.info.name)
        if self.stamp != stamp:
            self.info = mlflow_fields.read_sweep_info(self.outputs, self.info.name)
            self.stamp = stamp
        self.deleted = ""  # it may have been restored

    @property
    def lock(self) -> Path:
        return self.info.folder / "tracking.lock"

    def record(self) -> dict[str, Any]:
        return sync_state.read_parent_record(self.info, without_password(self.uri))

    def is_known(self) -> bool:
        return self.parent is not None or "experiment_id" in self.record()

    def find_or_create(self, client: MlflowClient, experiment: str, status: Status) -> str | None:
        """Return the id of the parent run, which is RUNNING while one of its runs is.

        `status` is that of the run that is sent. Returns None if the parent run stays deleted.
        """
        if self.deleted:
            return None
        if self.parent is None or self.parent.new:
            try:
                with file_lock(self.lock):
                    self.parent = self._find_or_create(client, experiment)
            except DeletedInStore as error:  # its runs are shown all the same
                self._record_final_state()
                self.deleted = f"sweep {self.info.name}: {error}"
                return None
        # Another mirror may have mistaken a pause between two runs for the end.
        known = {self.parent.status, self.record().get("status")}
        if status.state == "running" and known != {"RUNNING"}:
            with file_lock(self.lock):
                client.update_run(self.parent.id, status="RUNNING")
                self.parent = replace(self.parent, status="RUNNING", end_time=None)
                self._write_record(self.parent)
        return self.parent.id

    def finish(self, client: MlflowClient, stored: MlflowRun | None) -> None:
        """Send the sweep's files and final state; `stored` is its run, if it was queried before."""
        try:
            if self.parent is None:
                self.parent = self._recorded_parent(client, stored)
            self._send(client, self.parent)
        except DeletedInStore:
            self._record_final_state()
            raise

    def _recorded_parent(self, client: MlflowClient, stored: MlflowRun | None) -> Parent:
        """Return the recorded parent run: all of the sweep's runs were sent before."""
        record = self.record()
        if stored is not None and not record.get("fresh"):
            store.describe(client, stored, {}, mlflow_fields.sweep_tags(self.info))
            return Parent.of(stored)
        experiment = client.get_experiment(record["experiment_id"])
        store.require_experiment(client, experiment, self.restore)
        return self._find_or_create(client, record["experiment_id"])

    def _find_or_create(self, client: MlflowClient, experiment: str) -> Parent:
        record = self.record()
        key = RunKey(mlflow_fields.SWEEP, self.info.name, self.info.begun)
        known = self.parent.id if self.parent else record.get("mlflow_run_id")
        if self.parent or record.get("fresh"):  # just created: check that it is the only one
            # It stays in its experiment, whatever experiment this run belongs to.
            created = store.run_by_id(client, known)
            experiment, known = created.info.experiment_id if created else experiment, None
        run = store.find_run(client, experiment, key, known, self.restore)
        new = run is None
        if run is None:
            start = start_time(self.outputs, self.info, self.run_ids)
            run = store.create_run(client, experiment, key, self.info.name, start)
        parent = Parent.of(run, new=new)
        self._write_record(parent)
        store.describe(client, run, {}, mlflow_fields.sweep_tags(self.info))
        return parent

    def _send(self, client: MlflowClient, parent: Parent) -> None:
        """Send the sweep's files, and the state that follows from its runs."""
        state, end = sweep_state(self.outputs, self.info, self.run_ids)
        if (parent.status, parent.end_time) != (state, end):
            run = store.run_by_id(client, parent.id)
            if run is not None and run.info.lifecycle_stage != "active":
                raise DeletedInStore.by_name(self.info.name)
            set_state(client, parent.id, state, end)
            self.parent = parent = replace(parent, status=state, end_time=end)
            self._write_record(parent)
        sent, files = self.record().get("files", {}), sync_state.parent_files(self.info)
        for name, digest in files.items():
            if sent.get(name) != digest:
                log_file(client, parent.id, self.info.folder / name, name)
        self._write_record(parent, files)

    def _write_record(self, parent: Parent, files: Mapping[str, str] | None = None) -> None:
        """Record what the store has of the sweep; without `files`, keep the recorded ones."""
        before = self.record()
        if files is None:
            files = before.get("files", {}) if before.get("mlflow_run_id") == parent.id else {}
        record = {
            "store": without_password(self.uri), "mlflow_run_id": parent.id,
            "experiment_id": parent.experiment, "status": parent.status,
            "files": files, "fresh": parent.new,
        }  # fmt: skip
        if record != before:
            write_json(sync_state.parent_file(self.info), record)

    def _record_final_state(self) -> None:
        """Record the state of a sweep that stays deleted, so that it is not updated again."""
        if record := self.record():
            state, _ = sweep_state(self.outputs, self.info, self.run_ids)
            write_json(sync_state.parent_file(self.info), {**record, "status": state})


def start_time(outputs: Path, info: SweepInfo, run_ids: Iterable[str]) -> int | None:
    """Return when a sweep began, in milliseconds: from its plan, else from its first run."""
    if info.begun:
        return milliseconds(float(info.begun))
    starts = []
    for run in dict.fromkeys([*info.runs, *run_ids]):
        with suppress(UserError):
            starts.append(first_start(run_folder(outputs, run)))
    return milliseconds(min(starts)) if starts else None


def sweep_state(outputs: Path, info: SweepInfo, run_ids: Iterable[str]) -> tuple[str, int | None]:
    """Return MLflow's status of a sweep, from its runs', and when the last of them ended."""
    runs = dict.fromkeys([*info.runs, *run_ids])
    statuses = [_status(run_folder(outputs, run)) for run in runs]
    states = {status.state for status in statuses}
    if "running" in states:
        return "RUNNING", None
    if states <= {"finished", "stopped"}:
        state = "FINISHED"
    elif "failed" in states:
        state = "FAILED"
    elif "cancelled" in states:
        state = "KILLED"
    else:
        return "SCHEDULED", None  # some runs are still to come
    ended = max((status.updated for status in statuses if status.state in FINAL), default=0.0)
    return state, milliseconds(ended)


def _status(folder: RunFolder) -> Status:
    """Return the status of a run; one with a damaged file has failed."""
    try:
        return folder.remote_status()
    except UserError:
        return Status("failed")


def needs_parent(client: MlflowClient, run: MlflowRun, parent: str) -> bool:
    """Return whether a run has no parent in the store; a run of two sweeps keeps its first one."""
    known = run.data.tags.get("mlflow.parentRunId")
    if known in (None, parent):
        return known is None
    found = store.run_by_id(client, known)
    return found is None or found.info.lifecycle_stage != "active"
