"""MLflow beside what starts the runs: when they are mirrored, and the process that does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densevit.errors import UserError
from densevit.passwords import without_password
from densevit.rundir import RunFolder, run_folder, sweep_folder
from densevit.tracking import sent, shown
from densevit.tracking.child import FINAL
from densevit.tracking.mirror import Mirroring
from densevit.tracking.parent import sweep_state
from densevit.tracking.quick import Standing
from densevit.tracking.shown import Shelf
from densevit.tracking.store import database_file, require_usable, store_uri

INTERVAL = 5.0  # seconds between two looks at the runs
RIGHT_SECONDS = 60.0  # between two that set states right, of which one may still be at it
STOP_SECONDS = 60.0  # that a driver waits for the last look
_MOST_LINES = 5


def up_to_date(
    outputs: Path,
    run_ids: Iterable[str],
    sweep: str | None = None,
    living: Mapping[str, Standing] | None = None,
) -> bool:
    """Whether the store holds all there is of the runs and the sweep; looks at small files only.

    `living` is what the store says of its runs, if it was asked: it may have been emptied, or put
    back as it was before.
    False while a run works. A run that was not begun has nothing to send.
    """
    ids = list(run_ids)
    shelf = None if sweep is None else shown.read_shelf(outputs, sweep)
    begun = [run_id for run_id in ids if _has_begun(outputs, run_id)]
    if next(_missing(outputs, begun, shelf, living), None) is not None:
        return False
    if shelf is None or not begun:
        return True
    return _sent_sweep(outputs, shelf, without_password(store_uri(outputs)), ids, living)


def _missing(
    outputs: Path,
    run_ids: Iterable[str],
    shelf: Shelf | None,
    living: Mapping[str, Standing] | None = None,
) -> Iterator[str]:
    """The runs of which the store has not everything, and those that have not ended."""
    uri = store_uri(outputs)
    database, store = database_file(uri), without_password(uri)
    empty = database is not None and not database.exists()
    for run_id in run_ids:
        if empty or not _sent_to_its_end(run_folder(outputs, run_id), store, shelf, living):
            yield run_id


def mirror_once(
    outputs: Path, run_ids: Sequence[str], sweep: str | None = None, *, restore: bool = False
) -> tuple[list[str], list[str]]:
    """Bring the store up to date, in this process, with the sweep's parent run.

    Returns a line for each thing that could not be done, none if all is sent, and notes.
    """
    look = Mirroring(outputs, store_uri(outputs), run_ids, sweep, restore).look(last=True)
    return look.problems, look.notes


@contextmanager
def mirroring(
    outputs: Path,
    run_ids: Sequence[str],
    sweep: str | None = None,
    *,
    every: float = INTERVAL,
    grace: float = STOP_SECONDS,
) -> Iterator[None]:
    """Mirror runs while the block executes, and to their end; nothing if all was sent before.

    It looks `every` so many seconds; the last look is waited for, `grace` seconds at most. A store
    that cannot be used costs a warning.
    """
    beside = _Beside(outputs, run_ids, sweep, every, grace)
    with _harmless():
        beside.start()
    try:
        yield
    finally:
        with _harmless():
            beside.end()


@contextmanager
def _harmless() -> Iterator[None]:
    """What is wrong with the mirror costs a warning, and no run."""
    try:
        yield
    except (UserError, OSError) as error:
        print(f"warning: {error}; the runs go on without MLflow", file=sys.stderr)


@dataclass
class _Beside:
    """The mirror that a driver has, if it needs one."""

    outputs: Path
    run_ids: Sequence[str]
    sweep: str | None
    every: float
    grace: float
    shown: Sequence[str] = ()  # those of the runs that the mirror was told of
    mirror: Mirror | None = None
    usable: bool = False

    def start(self) -> None:
        require_usable(store_uri(self.outputs))
        self._start_if_needed()
        self.usable = True

    def _start_if_needed(self) -> None:
        """Start a mirror of what is not sent to its end yet: of thousands of runs it would look at
        those that are for longer than anybody waits."""
        shelf = None if self.sweep is None else shown.read_shelf(self.outputs, self.sweep)
        missing = dict.fromkeys(_missing(self.outputs, self.run_ids, shelf))
        there = (run_id for run_id in self.run_ids if run_id not in missing)
        # The sweep's own run is found by one of its runs.
        one = next((r for r in there if _has_begun(self.outputs, r)), None)
        if missing or not (one is None or self._sent([one])):
            self.shown = [*missing, *([one] if one else [])]
            self.mirror = start_mirror(self.outputs, self.shown, self.sweep, self.every)

    def end(self) -> None:
        """Let the mirror look a last time, and say what has to be said of it. One that was killed
        before, or gave up on its driver, gets a successor for that."""
        gone = self.mirror is not None and self.mirror.process.poll() is not None
        if self.usable and (self.mirror is None or (gone and not self._sent(self.shown))):
            self._start_if_needed()
        if self.mirror is None:
            return
        complete = self.mirror.stop(self.grace) or self._sent(self.shown)
        lines = [line.partition("warning: ")[2] or line for line in self.mirror.said()]
        lines = list(dict.fromkeys(line for line in lines if line.strip()))
        for line in lines[:_MOST_LINES]:
            print(f"warning: {line}", file=sys.stderr)
        if len(lines) > _MOST_LINES:
            more = len(lines) - _MOST_LINES
            print(f"warning: {more} more in {self.mirror.log}", file=sys.stderr)
        if not complete:
            name = self.sweep or self.run_ids[0]
            told = f"densevit sync {name} sends to MLflow what is missing there"
            print(f"warning: {told} (log: {self.mirror.log})", file=sys.stderr)

    def _sent(self, run_ids: Sequence[str]) -> bool:
        return up_to_date(self.outputs, run_ids, self.sweep)


@dataclass(frozen=True)
class Mirror:
    """The mirror process of a driver. It ends by itself when the driver ends, however it ends.

    `length` is that of its log before it was started, in bytes.
    """

    process: subprocess.Popen[bytes]
    log: Path
    length: int

    def stop(self, timeout: float = STOP_SECONDS) -> bool:
        """Let it look a last time; False if not all was sent, in `timeout` seconds at most.

        The sweep's report should be written before: the last look sends it too.
        """
        self.let_go()
        try:
            return self.process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # with what helps it
            self.process.wait()
            return False

    def let_go(self) -> None:
        """Ask for the last look, without waiting for it."""
        # Not SIGTERM, which would come too early for a process that is still starting.
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def said(self) -> list[str]:
        """The lines that it has written to its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(self.length)
                return file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:  # the outputs were removed meanwhile
            return []


def start_mirror(
    outputs: Path, run_ids: Sequence[str], sweep: str | None = None, every: float = INTERVAL
) -> Mirror:
    """Start the mirror process; its warnings go to `tracking.log` of the sweep, or of outputs.

    It is in a session of its own, so that Ctrl-C in the terminal reaches the driver alone.
    """
    folder = outputs if sweep is None else sweep_folder(outputs, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "tracking.log"
    command = [sys.executable, "-m", "densevit.tracking", str(outputs), "--every", str(every)]
    command += [] if sweep is None else ["--sweep", sweep]
    with log.open("ab") as output:
        length = output.tell()
        process = subprocess.Popen(  # noqa: S603  (our own module)
            [*command, "--", *run_ids],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            # A network is exported there now and then: the processors are for what trains.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    return Mirror(process, log, length)


def set_right(outputs: Path, run_ids: Iterable[str], sweep: str | None) -> None:
    """Have MLflow told, by a process that is not waited for, of runs that it shows as running and
    that are not: those that ended without a word, and whose mirror did; and of a sweep so."""
    with suppress(UserError, OSError):  # as where only somebody else may write
        store, ids = without_password(store_uri(outputs)), list(run_ids)
        wrong = [run_id for run_id in ids if _shown_running(run_folder(outputs, run_id), store)]
        if not wrong and sweep is not None and _sweep_shown_running(outputs, sweep, store, ids):
            wrong = [run for run in ids if sent.remembered(run_folder(outputs, run), store)][:1]
        mark = (outputs if sweep is None else sweep_folder(outputs, sweep)) / "tracking.right"
        if not wrong or (mark.exists() and time.time() - mark.stat().st_mtime < RIGHT_SECONDS):
            return
        mark.touch()
        start_mirror(outputs, wrong, sweep).let_go()


def _has_begun(outputs: Path, run_id: str) -> bool:
    return run_folder(outputs, run_id).provenance_file.exists()


def _sent_to_its_end(
    folder: RunFolder, store: str, shelf: Shelf | None, living: Mapping[str, Standing] | None
) -> bool:
    held = sent.remembered(folder, store)
    try:
        state = folder.seen().state
        if state in FINAL and not folder.provenance_file.exists():
            return True  # cancelled before it began: there is nothing to send
        files = sent.file_stamps(folder, state, shelf)
        size = folder.metrics_file.stat().st_size if folder.metrics_file.exists() else 0
        return (
            state in FINAL
            and (held.get("state"), held.get("offset")) == (state, size)
            and (shelf is None or shelf.name in held["sweeps"])
            and all(held["files"].get(name) == stamp for name, (_, stamp) in files.items())
            and (held["model"] or not held["wants_model"])
            and (living is None or living.get(held["mlflow_run_id"]) == _standing(held))
        )
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def _sent_sweep(
    outputs: Path,
    shelf: Shelf,
    store: str,
    run_ids: Sequence[str],
    living: Mapping[str, Standing] | None,
) -> bool:
    held = sent.remembered_parent(shelf, store)
    if living is not None:
        found = living.get(held.get("mlflow_run_id", ""))
        if found is None or found.status != held["status"]:
            return False
    state, _ = sweep_state(outputs, shelf, run_ids)
    return (held.get("status"), held.get("files")) == (state, sent.parent_files(shelf))


def _standing(held: Mapping[str, Any]) -> Standing:
    """A run as the store has it, if it has what was sent."""
    return Standing(held["status"], held["last_steps"])


def _shown_running(folder: RunFolder, store: str) -> bool:
    """Whether the store was told that the run works, which it does not."""
    held = sent.remembered(folder, store)
    try:
        return held.get("state") == "running" and folder.seen().state in FINAL
    except UserError:
        return False


def _sweep_shown_running(outputs: Path, sweep: str, store: str, run_ids: Sequence[str]) -> bool:
    shelf = shown.read_shelf(outputs, sweep)
    if sent.remembered_parent(shelf, store).get("status") != "RUNNING":
        return False
    return sweep_state(outputs, shelf, run_ids)[0] != "RUNNING"
