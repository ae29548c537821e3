"""MLflow beside what starts the runs: when they are mirrored, and the process that does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from densevit.errors import UserError
from densevit.passwords import without_password
from densevit.rundir import run_folder, sweep_folder
from densevit.tracking.child import FINAL
from densevit.tracking.complete import is_shown_running, sweep_is_shown_running, up_to_date
from densevit.tracking.mirror import Mirroring
from densevit.tracking.store import require_usable, store_uri

INTERVAL = 5.0  # seconds between two looks at the runs
RIGHT_SECONDS = 60.0  # between two that set states right, of which one may still be at it
STOP_SECONDS = 60.0  # that a driver waits for the last look
_MOST_LINES = 5


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
    starting: bool = False,
    every: float = INTERVAL,
    grace: float = STOP_SECONDS,
) -> Iterator[None]:
    """Mirror runs while the block executes, and to their end.

    Nothing is done if all was sent before, unless the block is `starting` some of them again. It
    looks `every` so many seconds; the last look is waited for, `grace` seconds at most. A store
    that cannot be used costs a warning.
    """
    beside = _Beside(outputs, run_ids, sweep, every, grace, starting)
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
    starting: bool
    mirror: Mirror | None = None
    usable: bool = False

    def start(self) -> None:
        require_usable(store_uri(self.outputs))
        if self.starting or not (self._sent() and self._all_ended()):
            self.mirror = self._started()
        self.usable = True

    def end(self) -> None:
        """Let the mirror look a last time, and say what has to be said of it. One that was killed
        before, or gave up on its driver, gets a successor for that."""
        gone = self.mirror is not None and self.mirror.process.poll() is not None
        if self.usable and (gone or self.mirror is None) and not self._sent():
            self.mirror = self._started()
        if self.mirror is None:
            return
        complete = self.mirror.stop(self.grace) or self._sent()
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

    def _sent(self) -> bool:
        return up_to_date(self.outputs, self.run_ids, self.sweep)

    def _all_ended(self) -> bool:
        return all(run_folder(self.outputs, run).seen().state in FINAL for run in self.run_ids)

    def _started(self) -> Mirror:
        return start_mirror(self.outputs, self.run_ids, self.sweep, self.every)


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
        wrong = [run_id for run_id in ids if is_shown_running(run_folder(outputs, run_id), store)]
        if not wrong and sweep and sweep_is_shown_running(outputs, sweep, store, ids):
            wrong = [run for run in ids if run_folder(outputs, run).provenance_file.exists()][:1]
        mark = (outputs if sweep is None else sweep_folder(outputs, sweep)) / "tracking.right"
        if not wrong or (mark.exists() and time.time() - mark.stat().st_mtime < RIGHT_SECONDS):
            return
        mark.touch()
        start_mirror(outputs, wrong, sweep).let_go()
