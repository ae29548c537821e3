"""MLflow as a mirror of the run directories.

One process beside the driver (`python -m densevit.tracking OUTPUTS --sweep NAME RUN_ID...`) reads
what the runs write and sends it on in batches. Training knows nothing of it, and a store that is
down costs a warning: what is missing is sent later, each (metric, step) once.

How far a run has been sent is asked of the store itself, the last step of each metric: this holds
when the mirror was killed between sending and remembering, and when a resumed run cut its metrics
file back and wrote the same steps again. `tracking.json` only saves reading and asking again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.config import RunConfig, applies, identity, is_execution
from densevit.errors import UserError
from densevit.rundir import (
    RunFolder,
    State,
    Status,
    read_json,
    read_metrics,
    run_folder,
    sweep_folder,
    write_json,
)

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import Metric

INTERVAL = 5.0  # seconds between two looks at the runs
LONGEST_WAIT = 60.0  # seconds, while the store does not answer
BATCH = 1000  # metrics a call, MLflow's limit

_MLFLOW_STATUS = {
    "pending": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
}
_FINAL: tuple[State, ...] = ("finished", "failed", "cancelled")


def store_uri(outputs: Path) -> str:
    """$MLFLOW_TRACKING_URI, else an SQLite file in the outputs folder."""
    default = f"sqlite:///{outputs.absolute() / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def up_to_date(outputs: Path, run_ids: Iterable[str], sweep: str | None = None) -> bool:
    """Whether the store holds every run to its end; a look at small files, without MLflow."""
    uri = store_uri(outputs)
    database = _database(uri)
    if database is not None and not database.exists():
        return False
    for run_id in run_ids:
        folder = run_folder(outputs, run_id)
        sent, state = _remembered(folder), folder.status().state
        if (
            state not in _FINAL
            or sent.get("status") != state
            or sent.get("store") != _without_password(uri)
            or sent.get("offset") != _size(folder.metrics_file)
            or (sweep is not None and sweep not in sent.get("sweeps", []))
        ):
            return False
    return True


def mirror_once(outputs: Path, run_ids: Sequence[str], sweep: str | None = None) -> list[str]:
    """Bring the store up to date and close the sweep's parent run with its report.

    Returns a line for each thing that could not be done; an empty list means all is sent.
    """
    return _Mirroring(outputs, run_ids, sweep).look(last=True)


@dataclass(frozen=True)
class Mirror:
    """The mirror process of a driver. It ends by itself when the driver ends, however it ends."""

    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, timeout: float = 60.0) -> bool:
        """Let it look a last time and wait for that; False if it took longer and was ended."""
        # Not SIGTERM, which would come too early for a process that is still starting.
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        return self.process.returncode == 0


def start_mirror(outputs: Path, run_ids: Sequence[str], sweep: str | None = None) -> Mirror:
    """Start the mirror process; it writes its warnings to a `tracking.log`.

    It is in a session of its own, so that Ctrl-C in the terminal reaches the driver alone.
    """
    folder = outputs if sweep is None else sweep_folder(outputs, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "tracking.log"
    command = [sys.executable, "-m", "densevit.tracking", str(outputs)]
    command += [] if sweep is None else ["--sweep", sweep]
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  (our own module)
            [*command, *run_ids],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Mirror(process, log)


def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror runs until SIGTERM, SIGINT or the end of stdin; then look a last time."""
    parser = argparse.ArgumentParser(prog="python -m densevit.tracking", description=main.__doc__)
    parser.add_argument("outputs", type=Path, help="the outputs folder")
    parser.add_argument("--sweep", help="show the runs under this sweep")
    parser.add_argument("runs", nargs="*", metavar="RUN_ID", help="the runs to mirror")
    given = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_wait_for_end_of_stdin, args=(stop,), daemon=True).start()
    mirroring = _Mirroring(given.outputs, given.runs, given.sweep)
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


@dataclass
class _Child:
    """A run in the store: what of the run directory it holds. `last_steps`: metric to step."""

    id: str
    status: str
    end_time: int | None
    last_steps: dict[str, int]
    offset: int = 0
    mark: str = ""


@dataclass
class _Mirroring:
    """Some runs, the store, and what this process found in it."""

    outputs: Path
    run_ids: Sequence[str]
    sweep: str | None
    children: dict[str, _Child] = field(default_factory=dict)
    parent: str | None = None

    def look(self, last: bool) -> list[str]:
        """Send what is new; with `last`, also close the parent run. Returns the problems."""
        uri = store_uri(self.outputs)
        try:
            with _alone(self.outputs, uri):
                return self._send(_client(uri), last)
        except Exception as error:  # whatever it is: training must not suffer, and we try again
            self.children.clear()  # what the store holds is asked again
            self.parent = None
            return [f"MLflow at {_without_password(uri)}: {_one_line(error)}; the rest is sent later"]

    def _send(self, client: mlflow.MlflowClient, last: bool) -> list[str]:
        from mlflow.exceptions import MlflowException

        problems = []
        for run_id in self.run_ids:
            try:
                self._send_run(client, run_folder(self.outputs, run_id), run_id)
            except (UserError, ValueError, KeyError, TypeError) as error:
                problems.append(f"{run_id}: {_one_line(error)}")
            except MlflowException as error:
                if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                    raise
                problems.append(f"{run_id}: {_one_line(error)}")
                self.children.pop(run_id, None)
        if last and self.parent is not None:
            self._close_parent(client)
        return problems
