"""How run directories are sent to MLflow: each (metric, step) once, whatever happened before.

How far a run was sent is asked of the store itself, as the last step of each metric: that stays
right when a mirror was killed between sending and remembering, and when a resumed run cut its
metrics file back and writes the same steps again. A run's `tracking.json` saves reading again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.config import RunConfig
from densevit.errors import UserError
from densevit.passwords import without_password
from densevit.rundir import (
    RunFolder,
    Status,
    run_folder,
    write_json,
)
from densevit.tracking import sent, shown, store
from densevit.tracking.child import (
    FINAL,
    Child,
    log_file,
    send_files,
    send_points,
    set_state,
    set_status,
    steps_of,
)
from densevit.tracking.shown import Shelf, milliseconds
from densevit.tracking.store import BEGUN, Left, Name, alone, opened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

# What a store says of a run that is not there any more, or deleted.
_GONE = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


@dataclass(frozen=True)
class Look:
    """What a look at the runs has left to say.

    `problems` are what could not be sent, which a later look tries again; `notes` what was sent
    otherwise than it stands in the run's directory.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Mirroring:
    """Some runs, their store, and what this process has found in it so far.

    `restore` brings back what a person has deleted in MLflow.
    """

    outputs: Path
    uri: str
    run_ids: Sequence[str]
    sweep: str | None = None
    restore: bool = False
    children: dict[str, Child] = field(default_factory=dict)
    parent: _Parent | None = None
    shelf: Shelf | None = None
    shelf_stamp: tuple[int, int] = (0, 0)
    left: str = ""  # why the sweep's own run is not shown

    def look(self, last: bool) -> Look:
        """Send what is new, with `last` also the sweep's report and state."""
        if self.sweep is not None:
            self._read_shelf(self.sweep)
        try:
            with opened(self.uri, self.outputs) as client:
                return self._send(client, last)
        except Exception as error:  # whatever it is, the runs must not suffer from it
            self.children.clear()  # what has arrived is asked again
            self.parent = None
            return Look([f"MLflow at {without_password(self.uri)}: {_one_line(error)}"])

    def _read_shelf(self, sweep: str) -> None:
        """Read the sweep's plan, if it is another one: it may be of thousands of runs."""
        stamp = shown.shelf_stamp(self.outputs, sweep)
        if self.shelf is None or self.shelf_stamp != stamp:
            self.shelf, self.shelf_stamp = shown.read_shelf(self.outputs, sweep), stamp

    def _send(self, client: MlflowClient, last: bool) -> Look:
        look = Look()
        for run_id in self.run_ids:
            folder = run_folder(self.outputs, run_id)
            child = self.children.get(run_id)
            if not last and child is not None and child.settled == sent.settled(folder):
                continue
            with self._one(client, run_id, folder.tracking_lock, look, patient=last) as mine:
                if mine:
                    self._send_run(client, run_id, look)
        if last and self.shelf is not None and self.parent is not None:
            lock = sent.parent_lock(self.shelf)
            with self._one(client, f"sweep {self.sweep}", lock, look, patient=True):
                self._settle_parent(client, self.shelf, self.parent)
        look.notes.extend(filter(None, [self.left]))
        return Look(_grouped(look.problems), _grouped(look.notes))

    @contextmanager
    def _one(
        self, client: MlflowClient, subject: str, lock: Path, look: Look, *, patient: bool
    ) -> Iterator[bool]:
        """Work on a run, alone among mirrors; a fault with it is told and stops no other.

        What is no fault with it, since the store answers nothing else either, is raised.
        """
        if not lock.parent.is_dir():  # a run that was not begun
            yield False
            return
        try:
            with alone(lock, patient=patient) as mine:
                yield mine
        except Left as left:
            look.notes.append(f"{subject}: {left}")
        except Exception as error:
            if not isinstance(error, UserError | ValueError):
                _raise_if_silent(client, error)
            told = str(error) if isinstance(error, UserError) else _one_line(error)
            look.problems.append(f"{subject}: {told}")
        else:
            return
        self.children.pop(subject, None)  # what has arrived is asked again

    def _send_run(self, client: MlflowClient, run_id: str, look: Look) -> None:
        """Bring a run in the store up to date."""
        from mlflow.exceptions import MlflowException

        known = run_id in self.children
        try:
            self._send_news(client, run_id, look)
            return
        except MlflowException as error:
            if not known or error.error_code not in _GONE:
                raise
        # It was deleted since, or the store is another one: as if it was never seen.
        self.children.clear()
        self.parent = None
        self._send_news(client, run_id, look)

    def _send_news(self, client: MlflowClient, run_id: str, look: Look) -> None:
        folder = run_folder(self.outputs, run_id)
        settled, begun = sent.settled(folder), sent.begun(folder)
        # Before the metrics: a run writes its final state after its last line.
        status = folder.seen()
        if status.state == "pending" or (status.state == "running" and not begun):
            return  # it will say in a moment what it is
        child, notes = self.children.get(run_id), []
        try:
            if child is None or child.begun != begun or child.fresh:
                child, notes = self._child(client, folder, status)
        except Left:
            self._remember(folder, status, self._held(folder))
            raise
        try:
            notes += send_points(client, self.uri, folder, child)
        finally:  # what cannot be sent must not leave a run that has ended running for ever
            set_status(client, child, status)
            self._remember(folder, status, child.record())
        look.notes.extend(f"{run_id}: {note}" for note in notes)
        send_files(client, child, sent.file_stamps(folder, status.state, self.shelf))
        if status.state == "finished" and child.wants_model and not child.has_model:
            from densevit.tracking.model import log_model

            log_model(client, child.id, folder, self.uri)
            child.has_model = True
        child.settled = settled if status.state in FINAL and not child.fresh else None
        self.children[run_id] = child
        self._remember(folder, status, child.record())

    def _held(self, folder: RunFolder) -> dict[str, Any]:
        return sent.remembered(folder, without_password(self.uri))

    def _remember(self, folder: RunFolder, status: Status, facts: Mapping[str, Any]) -> None:
        record = {**facts, "store": without_password(self.uri), "state": status.state}
        if record != self._held(folder):
            write_json(folder.tracking_file, record)

    def _child(
        self, client: MlflowClient, folder: RunFolder, status: Status
    ) -> tuple[Child, list[str]]:
        """The run in the store, made if it is not there, with its parameters and tags."""
        config, begun = folder.config(), sent.begun(folder)
        experiment = self._experiment(client, config)
        parent = self._parent(client, experiment, folder, status)
        held, first = self._held(folder), shown.first_start(folder, status)
        name = Name("densevit.run", folder.path.name, str(first))
        trusted = None if held.get("fresh") else held.get("mlflow_run_id")
        run = store.find_run(client, experiment, name, trusted, self.restore)
        fresh = run is None
        if run is None:
            title = shown.run_name(folder, config, self.shelf)
            run = store.make_run(client, experiment, name, title, milliseconds(first))
        sweeps = {s for s in run.data.tags.get("densevit.sweeps", "").split(",") if s}
        sweeps |= {self.sweep} if self.sweep else set()
        tags = {BEGUN: name.begun, **shown.run_tags(folder, config, self.shelf)}
        if sweeps:
            tags["densevit.sweeps"] = ",".join(sorted(sweeps))
        if parent is not None and _is_orphan(client, run, parent):
            tags["mlflow.parentRunId"] = parent
        params, notes = shown.run_params(config)
        store.describe(client, run, params, tags)
        child = Child(
            run.info.run_id, run.info.status, run.info.end_time, sorted(sweeps), steps_of(run),
            begun, config.log_model, run.info.experiment_id,
        )  # fmt: skip
        if held.get("mlflow_run_id") == child.id:
            child = child.resumed(held)
        child.fresh = fresh
        return child, notes

    def _experiment(self, client: MlflowClient, config: RunConfig) -> str:
        return store.find_or_make_experiment(
            client, config.experiment_name, self.outputs, self.uri, self.restore
        )

    def _parent(
        self, client: MlflowClient, experiment: str, folder: RunFolder, status: Status
    ) -> str | None:
        """The sweep's run in the store, open while any of its runs is."""
        if self.shelf is None or self.left:
            return None
        if self.parent is None or self.parent.fresh:
            first = shown.first_start(folder, status)
            try:
                self.parent = self._found_parent(client, experiment, self.shelf, first)
            except Left as left:  # its runs are shown all the same
                self.left = f"sweep {self.sweep}: {left}"
                return None
        if status.state == "running" and self.parent.status != "RUNNING":
            client.update_run(self.parent.id, status="RUNNING")
            self.parent = replace(self.parent, status="RUNNING", end_time=None)
        return self.parent.id

    def _found_parent(
        self, client: MlflowClient, experiment: str, shelf: Shelf, first: float
    ) -> _Parent:
        held = sent.remembered_parent(shelf, without_password(self.uri))
        name = Name("densevit.sweep", shelf.name, shelf.begun)
        sure = self.parent is None and not held.get("fresh")
        with alone(sent.parent_lock(shelf)):
            known = held.get("mlflow_run_id") if sure else None
            run = store.find_run(client, experiment, name, known, self.restore)
            fresh = run is None
            if run is None:
                run = store.make_run(client, experiment, name, shelf.name, milliseconds(first))
        store.describe(client, run, {}, shown.shelf_tags(shelf))
        return _Parent(run.info.run_id, run.info.status, run.info.end_time, fresh)

    def _settle_parent(self, client: MlflowClient, shelf: Shelf, parent: _Parent) -> None:
        """The sweep's files, and a state that follows from its runs'."""
        state, end = sweep_state(self.outputs, shelf, self.run_ids)
        if (parent.status, parent.end_time) != (state, end):
            set_state(client, parent.id, state, end)
            self.parent = replace(parent, status=state, end_time=end)
        held = sent.remembered_parent(shelf, without_password(self.uri))
        known = held.get("files", {}) if held.get("mlflow_run_id") == parent.id else {}
        now = sent.parent_files(shelf)
        for name, digest in now.items():
            if known.get(name) != digest:
                log_file(client, parent.id, shelf.folder / name, name)
        record = {"store": without_password(self.uri), "mlflow_run_id": parent.id,
                  "status": state, "files": now, "fresh": parent.fresh}  # fmt: skip
        if record != held:
            write_json(sent.parent_record(shelf), record)


@dataclass(frozen=True)
class _Parent:
    """A sweep's run in the store."""

    id: str
    status: str
    end_time: int | None
    fresh: bool  # as `Child.fresh`


def sweep_state(outputs: Path, shelf: Shelf, run_ids: Iterable[str]) -> tuple[str, int | None]:
    """MLflow's word for a sweep, from its runs', and when the last of them ended."""
    runs = dict.fromkeys([*shelf.runs, *run_ids])
    found = [_seen(run_folder(outputs, run)) for run in runs]
    states = {status.state for status in found}
    if "running" in states:
        return "RUNNING", None
    if states <= {"finished", "stopped"}:
        word = "FINISHED"
    elif "failed" in states:
        word = "FAILED"
    else:  # what nobody has stopped is still to come
        word = "KILLED" if "cancelled" in states else "SCHEDULED"
    ended = max((s.updated for s in found if s.state in FINAL), default=0.0)
    return word, None if word == "SCHEDULED" else milliseconds(ended)


def _seen(folder: RunFolder) -> Status:
    """Where a run stands; one that has a damaged file has failed."""
    try:
        return folder.seen()
    except (UserError, TypeError, AttributeError):
        return Status("failed")


def _is_orphan(client: MlflowClient, run: MlflowRun, parent: str) -> bool:
    """Whether a run has no parent in the store: one of two sweeps is shown under the first."""
    held = run.data.tags.get("mlflow.parentRunId")
    if held in (None, parent):
        return held is None
    found = store.by_id(client, held)
    return found is None or found.info.lifecycle_stage != "active"


def _raise_if_silent(client: MlflowClient, error: Exception) -> None:
    """Raise an error, if the store does not answer an easy question either."""
    if "timed out" in str(error).lower():  # it would be waited for once more
        raise error
    try:
        client.search_experiments(max_results=1)
    except Exception:
        raise error from None


def _grouped(lines: Sequence[str]) -> list[str]:
    """Lines of one text about several subjects as one line."""
    subjects: dict[str, list[str]] = {}
    for line in lines:
        subject, _, text = line.partition(": ")
        subjects.setdefault(text, []).append(subject)
    return [f"{_counted(of)}: {text}" for text, of in subjects.items()]


def _counted(subjects: Sequence[str]) -> str:
    more = f" and {len(subjects) - 3} more" if len(subjects) > 3 else ""
    return ", ".join(subjects[:3]) + more


def _one_line(error: Exception) -> str:
    """What is wrong, without the layers of libraries that it came through."""
    text = without_password(" ".join(str(error).split()))
    for pattern in _REASONS:
        if found := re.search(pattern, text, re.IGNORECASE):
            return f"does not answer: {found[0].lower()}"
    if found := re.search(r"error code (40[13])", text):
        return f"refuses this account ({found[1]}); {_ACCOUNT}"
    if isinstance(error, ModuleNotFoundError) and error.name in ("psycopg", "psycopg2"):
        return f"{error}; pip install 'densevit[postgres]'"
    return f"{type(error).__name__}: {text[:300]}"


_ACCOUNT = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say who you are"
_REASONS = (
    r"Connection refused|Network is unreachable|No route to host",
    r"Name or service not known|Temporary failure in name resolution",
    r"too many \d+ error responses",
    r"(read |connect )?timed out",
    r"Connection aborted|Connection reset by peer|Remote end closed connection",
    r"certificate verify failed",
)
