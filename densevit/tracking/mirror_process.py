"""The mirror process that a driver starts beside its runs."""

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

from densevit.runs.directory import run_folder, sweep_folder
from densevit.tracking.mirror import Mirror
from densevit.tracking.mlflow_run import FINAL
from densevit.tracking.store_uri import require_usable, store_uri
from densevit.tracking.up_to_date import (
    is_recorded_running,
    is_sweep_recorded_running,
    up_to_date,
)
from densevit.utils.console import warn
from densevit.utils.errors import UserError
from densevit.utils.redact import without_password

INTERVAL = 5.0  # seconds between two updates
FIX_SECONDS = 60.0  # between two mirrors that fix states; the first may still be at work
STOP_SECONDS = 60.0  # that a driver waits for the last update
_MOST_LINES = 5


def mirror_once(
    outputs: Path, run_ids: Sequence[str], sweep: str | None = None, *, restore: bool = False
) -> tuple[list[str], list[str]]:
    """Bring the store up to date in this process, including the sweep's parent run.

    Returns one line per problem (none if all is sent), and notes.
    """
    messages = Mirror(outputs, store_uri(outputs), run_ids, sweep, restore).update(last=True)
    return messages.problems, messages.notes


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

    Nothing is done if all was sent before, unless the block is `starting` some of them again. The
    store is updated every `every` seconds; the last update is waited for, `grace` seconds at most.
    A store that cannot be used costs a warning.
    """
    driver = _DriverMirror(outputs, run_ids, sweep, every, grace, starting)
    with _errors_as_warnings():
        driver.start()
    try:
        yield
    finally:
        with _errors_as_warnings():
            driver.end()


@contextmanager
def _errors_as_warnings() -> Iterator[None]:
    """Turn an error of the mirror into a warning: the runs continue."""
    try:
        yield
    except (UserError, OSError) as error:
        warn(f"warning: {error}; the runs continue without MLflow")


@dataclass
class _DriverMirror:
    """The mirror of a driver, if it needs one."""

    outputs: Path
    run_ids: Sequence[str]
    sweep: str | None
    every: float
    grace: float
    starting: bool
    mirror: MirrorProcess | None = None
    usable: bool = False

    def start(self) -> None:
        require_usable(store_uri(self.outputs))
        if self.starting or not (self._sent() and self._all_ended()):
            self.mirror = self._start_mirror()
        self.usable = True

    def end(self) -> None:
        """Let the mirror (a new one if needed) do its last update, and print its warnings."""
        ended = self.mirror is None or self.mirror.process.poll() is not None
        if self.usable and ended and not self._sent():
            self.mirror = self._start_mirror()
        if self.mirror is None:
            return
        complete = self.mirror.stop(self.grace) or self._sent()
        lines = [line.partition("warning: ")[2] or line for line in self.mirror.output()]
        lines = list(dict.fromkeys(line for line in lines if line.strip()))
        for line in lines[:_MOST_LINES]:
            warn(f"warning: {line}")
        if len(lines) > _MOST_LINES:
            more = len(lines) - _MOST_LINES
            warn(f"warning: {more} more in {self.mirror.log}")
        if not complete:
            name = self.sweep or self.run_ids[0]
            text = f"densevit sync {name} sends to MLflow what is missing there"
            warn(f"warning: {text} (log: {self.mirror.log})")

    def _sent(self) -> bool:
        return up_to_date(self.outputs, self.run_ids, self.sweep)

    def _all_ended(self) -> bool:
        return all(
            run_folder(self.outputs, run).remote_status().state in FINAL for run in self.run_ids
        )

    def _start_mirror(self) -> MirrorProcess:
        return start_mirror(self.outputs, self.run_ids, self.sweep, self.every)


@dataclass(frozen=True)
class MirrorProcess:
    """The mirror process of a driver. It ends by itself when the driver ends, for any reason.

    `length` is the size of its log before it was started, in bytes.
    """

    process: subprocess.Popen[bytes]
    log: Path
    length: int

    def stop(self, timeout: float = STOP_SECONDS) -> bool:
        """Let it do its last update; return False if not all was sent within `timeout` seconds.

        The sweep's report should be written before: the last update sends it too.
        """
        self.request_end()
        try:
            return self.process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # with its helper processes
            self.process.wait()
            return False

    def request_end(self) -> None:
        """Request the last update, without waiting for it."""
        # Not SIGTERM, which would come too early for a process that is still starting.
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def output(self) -> list[str]:
        """Return the lines that it has written to its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(self.length)
                return file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:  # the outputs were removed meanwhile
            return []


def start_mirror(
    outputs: Path, run_ids: Sequence[str], sweep: str | None = None, every: float = INTERVAL
) -> MirrorProcess:
    """Start the mirror process; its warnings go to `tracking.log` of the sweep, or of outputs.

    It has its own session, so that Ctrl-C in the terminal reaches the driver alone.
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
            # It may export networks; the CPUs are for training.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
    return MirrorProcess(process, log, length)


def fix_states(outputs: Path, run_ids: Iterable[str], sweep: str | None) -> None:
    """Start a mirror, without waiting for it, if MLflow wrongly shows runs or the sweep as running.

    Such a run was killed together with its mirror.
    """
    with suppress(UserError, OSError):  # e.g. no write permission
        store, ids = without_password(store_uri(outputs)), list(run_ids)
        wrong = [run for run in ids if is_recorded_running(run_folder(outputs, run), store)]
        if not wrong and sweep and is_sweep_recorded_running(outputs, sweep, store, ids):
            wrong = [run for run in ids if run_folder(outputs, run).provenance_file.exists()][:1]
        last_fix = (outputs if sweep is None else sweep_folder(outputs, sweep)) / "tracking.right"
        if not wrong or (
            last_fix.exists() and time.time() - last_fix.stat().st_mtime < FIX_SECONDS
        ):
            return
        last_fix.touch()
        start_mirror(outputs, wrong, sweep).request_end()
