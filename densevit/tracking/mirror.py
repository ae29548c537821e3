"""How run directories are sent to MLflow: each (metric, step) once, whatever happened before.

How far a run was sent is asked of the store itself, as the last step of each metric, and as all of
its steps where a line is not beyond that one: this stays right when a mirror was killed between
sending and remembering, and when a resumed run cut its metrics file back and writes the same steps
or others again. A run's `tracking.json` saves reading and asking again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.config import RunConfig
from densevit.errors import UserError
from densevit.passwords import without_password
from densevit.rundir import RunFolder, State, Status, run_folder, write_json
from densevit.tracking import sent, shown, store
from densevit.tracking.child import (
    FINAL,
    Child,
    log_file,
    send_files,
    send_points,
    set_state,
    set_status,
)
from densevit.tracking.complete import asked_living, is_sent
from densevit.tracking.faults import GONE, Silent, grouped, one_line, raise_if_silent
from densevit.tracking.parent import Parent, begun, is_orphan, sweep_state
from densevit.tracking.quick import Standing
from densevit.tracking.shown import Shelf, milliseconds
from densevit.tracking.store import Left, Name, alone, opened

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
    settled: dict[str, tuple[int, int]] = field(default_factory=dict)  # see `sent.settled`
    living: Mapping[str, Standing] | None = None  # what the store has, once it was asked
    asked: bool = False
    parent: Parent | None = None
    shelf: Shelf | None = None
    shelf_stamp: tuple[int, int] = (0, 0)
    left: str = ""  # why the sweep's own run is not shown

    def look(self, last: bool) -> Look:
        """Send what is new, with `last` also the sweep's report and state."""
        self.left = ""
        if self.sweep is not None:
            self._read_shelf(self.sweep)
        try:
            with opened(self.uri, self.outputs) as client:
                return self._send(client, last)
        except Exception as error:  # whatever it is, the runs must not suffer from it
            self._forget()  # what has arrived is asked again
            told = str(error) if isinstance(error, Silent) else one_line(error)
            return Look([f"MLflow at {without_password(self.uri)}: {told}"])

    def _read_shelf(self, sweep: str) -> None:
        """Read the sweep's plan, if it is another one: it may be of thousands of runs."""
        stamp = shown.shelf_stamp(self.outputs, sweep)
        if self.shelf is None or self.shelf_stamp != stamp:
            self.shelf, self.shelf_stamp = shown.read_shelf(self.outputs, sweep), stamp

    def _forget(self) -> None:
        """Ask for everything again: the store is another one, or was away."""
        self.children.clear()
        self.settled.clear()
        self.living, self.asked, self.parent = None, False, None

    def _send(self, client: MlflowClient, last: bool) -> Look:
        look = Look()
        # Where nothing is remembered of the sweep's own run, a run has to find it or to make it.
        held = None if self.shelf is None else self._held_parent(self.shelf)
        parent = None if held is None else held.get("mlflow_run_id")
        for run_id in self.run_ids:
            folder = run_folder(self.outputs, run_id)
            settled = sent.settled(folder)
            if not last and self.settled.get(run_id) == settled:
                continue
            if held != {} and self._is_done(run_id, folder, parent):
                self.settled[run_id] = settled
                continue
            with self._one(client, run_id, folder.tracking_lock, look, patient=last) as mine:
                if mine:
                    self._send_run(client, run_id, look, last)
        if last and self.shelf is not None and self._is_known(self.shelf) and not self.left:
            lock = sent.parent_lock(self.shelf)
            with self._one(client, f"sweep {self.sweep}", lock, look, patient=True):
                self._end_sweep(client, self.shelf)
        look.notes.extend(filter(None, [self.left]))
        return Look(grouped(look.problems), grouped(look.notes))

    def _is_known(self, shelf: Shelf) -> bool:
        return self.parent is not None or "experiment_id" in self._held_parent(shelf)

    def _is_done(self, run_id: str, folder: RunFolder, parent: str | None) -> bool:
        """Whether a run that this process has not looked at was sent to its end, and is there."""
        held = self._held(folder)
        if run_id in self.children or not held or held.get("fresh"):
            return False
        sent_to = (folder, without_password(self.uri), self.shelf)
        if not self.asked:
            if not is_sent(*sent_to, again=self.restore):
                return False
            self.living, self.asked = asked_living(self.outputs, self.run_ids), True
        if self.living is None or (self.shelf and parent not in self.living):
            return False  # without the sweep's own run it is to be shown under another one
        return is_sent(*sent_to, self.living, self.restore)

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
        held = ExitStack()
        try:
            mine = held.enter_context(alone(lock, patient=patient))
        except OSError as error:  # as where only somebody else may write
            look.problems.append(f"{subject}: {one_line(error)}")
            yield False
            return
        try:
            with held:
                yield mine
        except Silent:
            raise
        except Left as left:
            look.notes.append(f"{subject}: {left}")
        except Exception as error:
            if not isinstance(error, UserError | ValueError):
                raise_if_silent(client, error)
            told = str(error) if isinstance(error, UserError) else one_line(error)
            look.problems.append(f"{subject}: {told}")
        else:
            return
        self.children.pop(subject, None)  # what has arrived is asked again
        self.settled.pop(subject, None)
        self.parent = None

    def _send_run(self, client: MlflowClient, run_id: str, look: Look, last: bool) -> None:
        """Bring a run in the store up to date."""
        from mlflow.exceptions import MlflowException

        known = run_id in self.children
        try:
            self._send_news(client, run_id, look, last)
            return
        except MlflowException as error:
            if not known or error.error_code not in GONE:
                raise
        # It was deleted since, or the store is another one: as if it was never seen.
        self._forget()
        self._send_news(client, run_id, look, last)

    def _send_news(self, client: MlflowClient, run_id: str, look: Look, last: bool) -> None:
        folder = run_folder(self.outputs, run_id)
        settled, started_last = sent.settled(folder), sent.started_last(folder)
        # Before the metrics: a run writes its final state after its last line.
        status = folder.seen()
        if not started_last:  # whatever was said of it meanwhile
            return
        child, notes = self.children.get(run_id), []
        try:
            if child is None or child.started_last != started_last or child.fresh:
                child, notes = self._child(client, folder, status)
        except Exception as error:
            if not isinstance(error, Left | UserError):
                raise_if_silent(client, error)
            self._end_without(client, folder, status)
            raise
        held, patient = self._held(folder), status.state == "running" and not last
        child.resume(held)  # another mirror may have sent all there is
        try:
            notes += send_points(client, self.uri, folder, child, held, patient=patient)
        finally:  # what cannot be sent must not leave a run that has ended running for ever
            set_status(client, child, status)
            self._remember(folder, status.state, child.record())
        look.notes.extend(f"{run_id}: {note}" for note in notes)
        try:
            send_files(client, child, sent.file_stamps(folder, status.state, self.shelf))
            self._send_model(client, folder, child, status, look)
        finally:
            self._remember(folder, status.state, child.record())
        self.children[run_id] = child
        self.settled.pop(run_id, None)
        if status.state in FINAL and not child.fresh:
            self.settled[run_id] = settled

    def _send_model(
        self, client: MlflowClient, folder: RunFolder, child: Child, status: Status, look: Look
    ) -> None:
        """Log the network of a finished run, if that is wished. One that cannot be exported is told
        once, and tried again when somebody asks for it."""
        if status.state != "finished" or child.model_is_settled(again=self.restore):
            return
        from densevit.tracking.model import log_model

        try:
            log_model(client, child.id, folder, self.uri)
            child.model = "logged"
        except UserError as error:
            child.model = "refused"
            look.notes.append(f"{folder.path.name}: {error}; densevit sync NAME tries it again")

    def _end_without(self, client: MlflowClient, folder: RunFolder, status: Status) -> None:
        """Of a run that cannot be described, or stays deleted, at least its end is known."""
        held = self._held(folder)
        run = store.by_id(client, held.get("mlflow_run_id"))
        if run is not None and run.info.lifecycle_stage == "active":
            set_status(client, Child.of(run), status)
        if held:
            self._remember(folder, status.state, held)

    def _held(self, folder: RunFolder) -> dict[str, Any]:
        return sent.remembered(folder, without_password(self.uri))

    def _remember(self, folder: RunFolder, told: State, facts: Mapping[str, Any]) -> None:
        """Note what the store has, of which `told` is the run's state."""
        record = {**facts, "store": without_password(self.uri), "state": told}
        if record != self._held(folder):
            write_json(folder.tracking_file, record)

    def _child(
        self, client: MlflowClient, folder: RunFolder, status: Status
    ) -> tuple[Child, list[str]]:
        """The run in the store, made if it is not there, with its parameters and tags."""
        config = folder.config()
        experiment = self._experiment(client, config)
        parent = self._parent(client, experiment, status)
        held, first = self._held(folder), shown.first_start(folder)
        name = Name(shown.RUN, folder.path.name, str(first))
        trusted = None if held.get("fresh") else held.get("mlflow_run_id")
        run = store.find_run(client, experiment, name, trusted, self.restore)
        fresh = run is None
        if run is None:
            title = shown.run_name(folder, config, self.shelf)
            run = store.make_run(client, experiment, name, title, milliseconds(first))
            # As running, which it is there: should this end before the status is sent, it is seen.
            self._remember(folder, "running", {**Child.of(run).record(), "fresh": True})
        sweeps = {s for s in run.data.tags.get(shown.SWEEPS, "").split(",") if s}
        sweeps |= {self.sweep} if self.sweep else set()
        tags = {shown.BEGUN: name.begun, **shown.run_tags(folder, config, self.shelf)}
        if sweeps:
            tags[shown.SWEEPS] = ",".join(sorted(sweeps))
        if parent is not None and is_orphan(client, run, parent):
            tags["mlflow.parentRunId"] = parent
        params, notes = shown.run_params(config)
        store.describe(client, run, params, tags)
        child = Child.of(run)
        told = held.get("sweeps", {})
        child.sweeps = {name: told.get(name, "") for name in sorted(sweeps)}
        if self.shelf is not None:  # without the sweep's own run it is not shown as it should be
            child.sweeps[self.shelf.name] = shown.place(folder, self.shelf) if parent else ""
        child.fresh, child.wants_model = fresh, config.log_model
        child.started_last = sent.started_last(folder)
        return child, notes

    def _experiment(self, client: MlflowClient, config: RunConfig) -> str:
        return store.find_or_make_experiment(
            client, config.experiment_name, self.outputs, self.uri, self.restore
        )

    def _parent(self, client: MlflowClient, experiment: str, status: Status) -> str | None:
        """The sweep's run in the store, open while any of its runs is."""
        if self.shelf is None or self.left:
            return None
        if self.parent is None or self.parent.fresh:
            try:
                with alone(sent.parent_lock(self.shelf)):
                    self.parent = self._found_parent(client, experiment, self.shelf)
            except Left as left:  # its runs are shown all the same
                self._let_be(self.shelf)
                self.left = f"sweep {self.sweep}: {left}"
                return None
        # Another mirror may have taken a pause between two runs for the end.
        told = {self.parent.status, self._held_parent(self.shelf).get("status")}
        if status.state == "running" and told != {"RUNNING"}:
            with alone(sent.parent_lock(self.shelf)):
                client.update_run(self.parent.id, status="RUNNING")
                self.parent = replace(self.parent, status="RUNNING", end_time=None)
                self._remember_parent(self.shelf, self.parent)
        return self.parent.id

    def _held_parent(self, shelf: Shelf) -> dict[str, Any]:
        return sent.remembered_parent(shelf, without_password(self.uri))

    def _found_parent(self, client: MlflowClient, experiment: str, shelf: Shelf) -> Parent:
        held = self._held_parent(shelf)
        name = Name(shown.SWEEP, shelf.name, shelf.begun)
        known = self.parent.id if self.parent else held.get("mlflow_run_id")
        if self.parent or held.get("fresh"):  # made just now: whether it is the only one?
            # It is where it was made, whatever experiment this run belongs to.
            made = store.by_id(client, known)
            experiment, known = made.info.experiment_id if made else experiment, None
        run = store.find_run(client, experiment, name, known, self.restore)
        fresh = run is None
        if run is None:
            began = begun(self.outputs, shelf, self.run_ids)
            run = store.make_run(client, experiment, name, shelf.name, began)
        info = run.info
        parent = Parent(info.run_id, info.experiment_id, info.status, info.end_time, fresh)
        self._remember_parent(shelf, parent)
        store.describe(client, run, {}, shown.shelf_tags(shelf))
        return parent

    def _end_sweep(self, client: MlflowClient, shelf: Shelf) -> None:
        """Bring the sweep's own run up to date, by what is remembered of it if no run led to it."""
        try:
            if self.parent is None:  # all of its runs were sent before
                experiment = self._held_parent(shelf)["experiment_id"]
                store.require_experiment(client, client.get_experiment(experiment), self.restore)
                self.parent = self._found_parent(client, experiment, shelf)
            self._settle_parent(client, shelf, self.parent)
        except Left:
            self._let_be(shelf)
            raise

    def _settle_parent(self, client: MlflowClient, shelf: Shelf, parent: Parent) -> None:
        """The sweep's files, and a state that follows from its runs'."""
        state, end = sweep_state(self.outputs, shelf, self.run_ids)
        if (parent.status, parent.end_time) != (state, end):
            found = store.by_id(client, parent.id)
            if found is not None and found.info.lifecycle_stage != "active":
                raise Left(f"was deleted in MLflow; densevit sync {shelf.name} restores it")
            set_state(client, parent.id, state, end)
            self.parent = parent = replace(parent, status=state, end_time=end)
            self._remember_parent(shelf, parent)
        known, now = self._held_parent(shelf).get("files", {}), sent.parent_files(shelf)
        for name, digest in now.items():
            if known.get(name) != digest:
                log_file(client, parent.id, shelf.folder / name, name)
        self._remember_parent(shelf, parent, now)

    def _remember_parent(
        self, shelf: Shelf, parent: Parent, files: Mapping[str, str] | None = None
    ) -> None:
        """Note what the store has of the sweep; without `files` those of before."""
        held = self._held_parent(shelf)
        before = held.get("files", {}) if held.get("mlflow_run_id") == parent.id else {}
        record = {
            "store": without_password(self.uri), "mlflow_run_id": parent.id,
            "experiment_id": parent.experiment, "status": parent.status,
            "files": before if files is None else files, "fresh": parent.fresh,
        }  # fmt: skip
        if record != held:
            write_json(sent.parent_record(shelf), record)

    def _let_be(self, shelf: Shelf) -> None:
        """Note of a sweep that stays deleted that nothing is left to set right."""
        if held := self._held_parent(shelf):
            state, _ = sweep_state(self.outputs, shelf, self.run_ids)
            write_json(sent.parent_record(shelf), {**held, "status": state})
