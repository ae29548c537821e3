"""MLflow beside the training: when to mirror the runs, and the process that does it.

One process per driver (`python -m densevit.tracking OUTPUTS --sweep NAME RUN_ID...`) reads what
the runs write and sends it on; see `densevit.mirror` for how. Training knows nothing of it, and a
store that is down costs a warning in `tracking.log`: what is missing is sent later.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from densevit.errors import UserError
from densevit.mirror import FINAL, Mirroring, remembered
from densevit.mlflow_store import database_file, without_password
from densevit.rundir import RunFolder, run_folder, sweep_folder

INTERVAL = 5.0  # seconds between two looks at the runs
LONGEST_WAIT = 60.0  # seconds, while the store does not answer


def store_uri(outputs: Path) -> str:
    """$MLFLOW_TRACKING_URI, else an SQLite file in the outputs folder."""
    default = f"sqlite:///{outputs.absolute() / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def up_to_date(outputs: Path, run_ids: Iterable[str], sweep: str | None = None) -> bool:
    """Whether every run has ended and the store holds it all; looks at small files only.

    A sweep's parent run is not looked at, only whether each run was sent as part of the sweep.
    """
    uri = store_uri(outputs)
    database = database_file(uri)
    if database is not None and not database.exists():
        return False
    folders = (run_folder(outputs, run_id) for run_id in run_ids)
    return all(_sent_to_its_end(folder, without_password(uri), sweep) for folder in folders)


def mirror_once(outputs: Path, run_ids: Sequence[str], sweep: str | None = None) -> list[str]:
    """Bring the store up to date, in this process, and close the sweep's parent run.

    Returns a line for each thing that could not be done; an empty list means all is sent.
    """
    return Mirroring(outputs, store_uri(outputs), run_ids, sweep).look(last=True)


@contextmanager
def mirroring(outputs: Path, run_ids: Sequence[str], sweep: str | None = None) -> Iterator[None]:
    """Mirror runs while the block executes, and to their end; nothing if all was sent before."""
    if up_to_date(outputs, run_ids, sweep):
        yield
        return
    mirror = start_mirror(outputs, run_ids, sweep)
    length = mirror.log.stat().st_size
    try:
        yield
    finally:
        if not mirror.stop() or mirror.log.stat().st_size > length:
            print(
                f"warning: MLflow could not be reached all the time: {mirror.log}", file=sys.stderr
            )


@dataclass(frozen=True)
class Mirror:
    """The mirror process of a driver. It ends by itself when the driver ends, however it ends."""

    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, timeout: float = 60.0) -> bool:
        """Let it look a last time; False if that took more than `timeout` seconds or failed.

        The sweep's report should be written before: the last look sends it too.
        """
        # Not SIGTERM, which would come too early for a process that is still starting.
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            return self.process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False


def start_mirror(outputs: Path, run_ids: Sequence[str], sweep: str | None = None) -> Mirror:
    """Start the mirror process; its warnings go to `tracking.log` of the sweep, or of outputs.

    It is in a session of its own, so that Ctrl-C in the terminal reaches the driver alone.
    """
    folder = outputs if sweep is None else sweep_folder(outputs, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "tracking.log"
    command = [sys.executable, "-m", "densevit.tracking", str(outputs)]
    command += [] if sweep is None else ["--sweep", sweep]
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  (our own module)
            [*command, "--", *run_ids],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Mirror(process, log)


def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror runs until SIGTERM, Ctrl-C or the end of stdin; then look a last time."""
    parser = argparse.ArgumentParser(prog="python -m densevit.tracking", description=main.__doc__)
    parser.add_argument("outputs", type=Path, metavar="OUTPUTS", help="the outputs folder")
    parser.add_argument("--sweep", metavar="NAME", help="show the runs under this sweep")
    parser.add_argument("runs", nargs="+", metavar="RUN_ID", help="the runs to mirror")
    given = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_wait_for_end_of_stdin, args=(stop,), daemon=True).start()
    mirroring = Mirroring(given.outputs, store_uri(given.outputs), given.runs, given.sweep)
    told: list[str] = []
    wait = INTERVAL
    while True:
        last = stop.is_set()
        problems = mirroring.look(last)
        if problems != told:  # a store that is down for days is told once
            for line in problems:
                print(f"{time.strftime('%F %T')} warning: {line}", file=sys.stderr, flush=True)
            told = problems
        if last:
            return 0
        wait = min(2 * wait, LONGEST_WAIT) if problems else INTERVAL
        stop.wait(wait)


def _sent_to_its_end(folder: RunFolder, store: str, sweep: str | None) -> bool:
    sent = remembered(folder, store)
    try:
        state = folder.status().state
        size = folder.metrics_file.stat().st_size if folder.metrics_file.exists() else 0
    except (UserError, OSError):
        return False
    return (
        state in FINAL
        and (sent.get("status"), sent.get("offset")) == (state, size)
        and (sweep is None or sweep in sent["sweeps"])
    )


def _wait_for_end_of_stdin(stop: threading.Event) -> None:
    # Not sys.stdin, whose lock a thread that is still reading would hold when Python ends.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
