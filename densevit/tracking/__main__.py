"""The process that mirrors runs: `python -m densevit.tracking OUTPUTS --sweep NAME RUN_ID...`"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from densevit.tracking.mirror import Mirror
from densevit.tracking.mirror_process import INTERVAL
from densevit.tracking.store_uri import database_file, is_database, store_uri
from densevit.utils.console import warn
from densevit.utils.errors import EXIT_CARRY_ON

LONGEST_WAIT = 60.0  # seconds, while the store does not answer
GRACE = 90.0  # seconds that a driver has to end after both were signaled
NICE = 10  # a lower priority than training


def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror runs until the end of stdin, SIGTERM or Ctrl-C, with a last update at the end.

    Returns 0 if all is sent, 75 if not.
    """
    parser = argparse.ArgumentParser(prog="python -m densevit.tracking", description=main.__doc__)
    parser.add_argument("outputs", type=Path, metavar="OUTPUTS", help="the outputs folder")
    parser.add_argument("--sweep", metavar="NAME", help="show the runs under this sweep")
    parser.add_argument("--every", type=float, default=INTERVAL, help="seconds between two updates")
    parser.add_argument("runs", nargs="+", metavar="RUN_ID", help="the runs to mirror")
    given = parser.parse_args(arguments)
    os.nice(NICE)
    stop = _stop_event()
    uri = store_uri(given.outputs)
    _hold_no_connection(uri)
    mirror = Mirror(given.outputs, uri, given.runs, given.sweep)
    printed: set[str] = set()
    notes: set[str] = set()
    wait, inode = given.every, None
    while True:
        last = stop.is_set()
        inode = _restart_if_replaced(uri, inode)
        messages = mirror.update(last)
        for line in [*messages.problems, *messages.notes]:
            if line not in printed:
                warn(f"{time.strftime('%F %T')} warning: {line}")
        # A store that is down is reported once, and once more if it goes down again.
        notes |= {*messages.notes}
        printed = notes | {*messages.problems} | (printed if messages.problems else set())
        if last:
            return EXIT_CARRY_ON if messages.problems else 0
        wait = min(2 * wait, LONGEST_WAIT) if messages.problems else given.every
        stop.wait(wait)


def _hold_no_connection(uri: str) -> None:
    """Keep no database connection between updates: a cluster may have hundreds of mirrors."""
    pooled = any(name.startswith("MLFLOW_SQLALCHEMYSTORE_") for name in os.environ)
    if is_database(uri) and database_file(uri) is None and not pooled:
        os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"


def _stop_event() -> threading.Event:
    """Return an event that is set at the end of stdin, or `GRACE` seconds after a signal.

    Slurm and others signal all processes of a job at once: the runs' last records still follow.
    """
    stop = threading.Event()

    def stop_later(*_: object) -> None:
        timer = threading.Timer(GRACE, stop.set)
        timer.daemon = True
        timer.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_later)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    threading.Thread(target=_wait_for_end_of_stdin, args=(stop,), daemon=True).start()
    return stop


def _restart_if_replaced(uri: str, inode: int | None) -> int | None:
    """Return the inode of an SQLite store; if it has changed, restart this process: MLflow would go
    on writing to the deleted file."""
    database = database_file(uri)
    if database is None:
        return None
    current = database.stat().st_ino if database.exists() else None
    if inode is not None and current != inode:
        command = [sys.executable, "-m", "densevit.tracking", *sys.argv[1:]]
        os.execv(sys.executable, command)  # noqa: S606  (a list, no shell)
    return current


def _wait_for_end_of_stdin(stop: threading.Event) -> None:
    # Not sys.stdin: a thread that is still reading would hold its lock when Python exits.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
