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

from densevit.errors import EXIT_CARRY_ON
from densevit.tracking.beside import INTERVAL
from densevit.tracking.mirror import Mirroring
from densevit.tracking.store import database_file, is_database, store_uri

LONGEST_WAIT = 60.0  # seconds, while the store does not answer
GRACE = 90.0  # seconds that a driver has to end, after both were told to
NICE = 10  # of lower priority than what trains here


def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror runs until the end of stdin, SIGTERM or Ctrl-C; then look a last time.

    Returns 0 if all is sent, 75 if not.
    """
    parser = argparse.ArgumentParser(prog="python -m densevit.tracking", description=main.__doc__)
    parser.add_argument("outputs", type=Path, metavar="OUTPUTS", help="the outputs folder")
    parser.add_argument("--sweep", metavar="NAME", help="show the runs under this sweep")
    parser.add_argument("--every", type=float, default=INTERVAL, help="seconds between two looks")
    parser.add_argument("runs", nargs="+", metavar="RUN_ID", help="the runs to mirror")
    given = parser.parse_args(arguments)
    os.nice(NICE)
    stop = _stop_wanted()
    uri = store_uri(given.outputs)
    _hold_no_connection(uri)
    mirroring = Mirroring(given.outputs, uri, given.runs, given.sweep)
    told: set[str] = set()
    notes: set[str] = set()
    wait, place = given.every, None
    while True:
        last = stop.is_set()
        place = _again_if_replaced(uri, place)
        look = mirroring.look(last)
        for line in [*look.problems, *look.notes]:
            if line not in told:
                print(f"{time.strftime('%F %T')} warning: {line}", file=sys.stderr, flush=True)
        # A store that is down for days is told once; if it is down again later, that too.
        kept = told if look.problems else notes
        notes |= {*look.notes}
        told = kept | notes | {*look.problems}
        if last:
            return EXIT_CARRY_ON if look.problems else 0
        wait = min(2 * wait, LONGEST_WAIT) if look.problems else given.every
        stop.wait(wait)


def _hold_no_connection(uri: str) -> None:
    """Between two looks: a database takes some hundred, and a cluster may have as many mirrors."""
    pooled = any(name.startswith("MLFLOW_SQLALCHEMYSTORE_") for name in os.environ)
    if is_database(uri) and database_file(uri) is None and not pooled:
        os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"


def _stop_wanted() -> threading.Event:
    """Set at the end of stdin; after a signal so too, but at the latest when the grace is over.

    Slurm and others signal all processes of a job at once: the runs' last words are waited for.
    """
    stop = threading.Event()

    def told(*_: object) -> None:
        timer = threading.Timer(GRACE, stop.set)
        timer.daemon = True
        timer.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    threading.Thread(target=_wait_for_end_of_stdin, args=(stop,), daemon=True).start()
    return stop


def _again_if_replaced(uri: str, place: int | None) -> int | None:
    """The inode of an SQLite store. If it is another one than before, MLflow would go on writing to
    the file that was deleted: then this process begins anew."""
    database = database_file(uri)
    if database is None:
        return None
    found = database.stat().st_ino if database.exists() else None
    if place is not None and found != place:
        command = [sys.executable, "-m", "densevit.tracking", *sys.argv[1:]]
        os.execv(sys.executable, command)  # noqa: S606  (a list, no shell)
    return found


def _wait_for_end_of_stdin(stop: threading.Event) -> None:
    # Not sys.stdin, whose lock a thread that is still reading would hold when Python ends.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
