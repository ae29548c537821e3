"""Send run directories to MLflow: each (metric, step) once, whatever happened before.

The store itself tells how far a run was sent: by the last step of each metric, and by all of its
steps if a line is not beyond that one. This stays correct when a mirror was killed between sending
and recording, and when a resumed run truncated its metrics file and logs the same or other steps
again. A run's `tracking.json` saves repeated reads and queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.runs.directory import RunFolder, run_folder, sweep_folder
from densevit.runs.status import State, Status
from densevit.tracking import mlflow_fields, store, sync_state
from densevit.tracking.mlflow_fields import SweepInfo, milliseconds
from densevit.tracking.mlflow_run import (
    FINAL,
    Child,
    send_files,
    send_model,
    send_points,
    set_status,
)
from densevit.tracking.mlflow_sweep import ParentRun, needs_parent
from densevit.tracking.store import DeletedInStore, RunKey, file_lock, opened
from densevit.tracking.store_errors import (
    GONE,
    StoreUnreachable,
    grouped,
    one_line,
    raise_if_unreachable,
)
from densevit.tracking.up_to_date import complete_runs
from densevit.utils.errors import UserError
from densevit.utils.files import write_json
from densevit.utils.redact import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Messages:
    """The messages of one update.

    `problems`: what could not be sent and is retried later; `notes`: what was sent in another form
    than in the run's directory, or is not sent on purpose.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Mirror:
    """Some runs, their store, and what this process knows of the store.

    `restore`: restore what a user has deleted in MLflow. `children`: the runs that this process has
    sent; `complete`: ended runs of which the store has everything, with `sync_state.last_changes`
    at that time.
    """

    outputs: Path
    uri: str
    run_ids: Sequence[str]
    sweep: str | None = None
    restore: bool = False
    children: dict[str, Child] = field(default_factory=dict)
    complete: dict[str, tuple[int, int]] = field(default_factory=dict)
    parent: ParentRun | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.sweep is not None:
            info = SweepInfo(self.sweep, sweep_folder(self.outputs, self.sweep))
            self.parent = ParentRun(self.outputs, self.uri, self.run_ids, self.restore, info)

    def update(self, last: bool) -> Messages:
        """Send what is new; with `last`, also the sweep's report and state."""
        if self.parent is not None:
            self.parent.read_plan()
        try:
            with opened(self.uri, self.outputs) as client:
                return self._send(client, last)
        except Exception as error:  # no error of the mirror may harm the runs
            self._forget()  # query again what has arrived
            text = str(error) if isinstance(error, StoreUnreachable) else one_line(error)
            return Messages([f"MLflow at {without_password(self.uri)}: {text}"])

    def _forget(self) -> None:
        """Forget what is known of the store, which was replaced or did not answer."""
        self.children.clear()
        self.complete.clear()
        if self.parent is not None:
            self.parent.parent = None

    def _send(self, client: MlflowClient, last: bool) -> Messages:
        messages, parent = Messages(), self.parent
        changes = {
            run_id: sync_state.last_changes(run_folder(self.outputs, run_id))
            for run_id in self.run_ids
        }
        due = [run for run in self.run_ids if last or self.complete.get(run) != changes[run]]
        unknown = [run_folder(self.outputs, run) for run in due if run not in self.children]
        complete, parent_run = complete_runs(client, unknown, self.uri, parent, self.restore)
        for run_id in due:
            if run_id in complete:
                self.complete[run_id] = changes[run_id]
                continue
            lock = run_folder(self.outputs, run_id).tracking_lock
            send = partial(self._send_run, client, run_id, messages, last)
            self._guarded(client, run_id, lock, send, messages, wait=last)
        if last and parent is not None and parent.is_known() and not parent.deleted:
            send = partial(parent.finish, client, parent_run)
            self._guarded(client, f"sweep {self.sweep}", parent.lock, send, messages, wait=True)
        if parent is not None and parent.deleted:
            messages.notes.append(parent.deleted)
        return Messages(grouped(messages.problems), grouped(messages.notes))

    def _guarded(
        self, client: MlflowClient, subject: str, lock: Path, send: Callable[[], None],
        messages: Messages, *, wait: bool,
    ) -> None:  # fmt: skip
        """Send a run under a lock against other mirrors; its problem does not stop other runs.

        Errors: `StoreUnreachable`.
        """
        if not lock.parent.is_dir():  # a run that has not started
            return
        try:
            with file_lock(lock, wait=wait) as locked:
                if locked:
                    send()
            return
        except StoreUnreachable:
            raise
        except DeletedInStore as error:
            messages.notes.append(f"{subject}: {error}")
        except Exception as error:
            if not isinstance(error, UserError | ValueError | PermissionError):
                raise_if_unreachable(client, error)
            text = str(error) if isinstance(error, UserError) else one_line(error)
            messages.problems.append(f"{subject}: {text}")
        self.children.pop(subject, None)  # query again what has arrived
        self.complete.pop(subject, None)
        if self.parent is not None:
            self.parent.parent = None

    def _send_run(self, client: MlflowClient, run_id: str, messages: Messages, last: bool) -> None:
        """Bring a run in the store up to date."""
        from mlflow.exceptions import MlflowException

        known = run_id in self.children
        try:
            self._update_run(client, run_id, messages, last)
            return
        except MlflowException as error:
            if not known or error.error_code not in GONE:
                raise
        # The run was deleted, or the store replaced: begin as for an unknown run.
        self._forget()
        self._update_run(client, run_id, messages, last)

    def _update_run(
        self, client: MlflowClient, run_id: str, messages: Messages, last: bool
    ) -> None:
        folder = run_folder(self.outputs, run_id)
        changes, last_start = sync_state.last_changes(folder), sync_state.last_start(folder)
        # Read before the metrics: a run writes its final state after its last line.
        status = folder.remote_status()
        if not last_start:  # not started, whatever its status is
            return
        child = self.children.get(run_id)
        notes: list[str] = []
        try:
            if child is None or child.last_start != last_start or child.new:
                child, notes = self._find_or_create(client, folder, status)
        except Exception as error:
            if not isinstance(error, DeletedInStore | UserError):
                raise_if_unreachable(client, error)
            self._send_final_status(client, folder, status)
            raise
        record, wait = self._record(folder), status.state == "running" and not last
        child.resume(record)  # another mirror may have sent everything
        try:
            notes += send_points(client, self.uri, folder, child, record, wait=wait)
        finally:  # an ended run must not stay RUNNING because sending failed
            set_status(client, child, status)
            self._write_record(folder, status.state, child.record())
        messages.notes.extend(f"{run_id}: {note}" for note in notes)
        info = self._info()
        try:
            send_files(client, child, sync_state.file_stamps(folder, status.state, info))
            if status.state == "finished" and child.needs_model(retry=self.restore):
                messages.notes.extend(send_model(client, self.uri, folder, child))
        finally:
            self._write_record(folder, status.state, child.record())
        self.children[run_id] = child
        self.complete.pop(run_id, None)
        if status.state in FINAL and not child.new:
            self.complete[run_id] = changes

    def _send_final_status(self, client: MlflowClient, folder: RunFolder, status: Status) -> None:
        """Send at least the status of a run that cannot be described or stays deleted."""
        record = self._record(folder)
        run = store.run_by_id(client, record.get("mlflow_run_id"))
        if run is not None and run.info.lifecycle_stage == "active":
            set_status(client, Child.of(run), status)
        if record:
            self._write_record(folder, status.state, record)

    def _info(self) -> SweepInfo | None:
        return None if self.parent is None else self.parent.info

    def _record(self, folder: RunFolder) -> dict[str, Any]:
        return sync_state.read_record(folder, without_password(self.uri))

    def _write_record(self, folder: RunFolder, state: State, facts: Mapping[str, Any]) -> None:
        """Record what the store has; `state` is the run's state there."""
        record = {**facts, "store": without_password(self.uri), "state": state}
        if record != self._record(folder):
            write_json(folder.tracking_file, record)

    def _find_or_create(
        self, client: MlflowClient, folder: RunFolder, status: Status
    ) -> tuple[Child, list[str]]:
        """Return the run in the store with its parameters and tags, and notes on them."""
        config = folder.config()
        experiment = store.find_or_create_experiment(
            client, config.experiment_name, self.outputs, self.uri, self.restore
        )
        parent = self.parent
        parent_id = None if parent is None else parent.find_or_create(client, experiment, status)
        info = self._info()
        record, start = self._record(folder), mlflow_fields.first_start(folder)
        key = RunKey(mlflow_fields.RUN, folder.path.name, str(start))
        known_id = None if record.get("fresh") else record.get("mlflow_run_id")
        run = store.find_run(client, experiment, key, known_id, self.restore)
        new = run is None
        if run is None:
            title = mlflow_fields.run_name(folder, config, info)
            run = store.create_run(client, experiment, key, title, milliseconds(start))
            # Recorded as running, as in the store: `fix_states` finds it if this process dies.
            self._write_record(folder, "running", {**Child.of(run).record(), "fresh": True})
        sweeps = {s for s in run.data.tags.get(mlflow_fields.SWEEPS, "").split(",") if s}
        sweeps |= {self.sweep} if self.sweep else set()
        tags = {mlflow_fields.BEGUN: key.begun, **mlflow_fields.run_tags(folder, config, info)}
        if sweeps:
            tags[mlflow_fields.SWEEPS] = ",".join(sorted(sweeps))
        if parent_id is not None and needs_parent(client, run, parent_id):
            tags["mlflow.parentRunId"] = parent_id
        params, notes = mlflow_fields.run_params(config)
        store.describe(client, run, params, tags)
        child = Child.of(run)
        recorded = record.get("sweeps", {})
        child.sweeps = {name: recorded.get(name, "") for name in sorted(sweeps)}
        if info is not None:  # empty until the run has its parent
            digest = mlflow_fields.plan_entry_digest(folder, info)
            child.sweeps[info.name] = digest if parent_id else ""
        child.new, child.wants_model = new, config.log_model
        child.last_start = sync_state.last_start(folder)
        return child, notes
