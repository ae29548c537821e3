"""Progress, locking and interruption of the foreground launchers (local, Ray)."""

from __future__ import annotations

import fcntl
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from densevit.sweep.grid import Run


@dataclass
class Progress:
    """The runs that wait, run (here or under another launcher) and have ended.

    `active` maps each run to the launcher's handle for it.
    """

    waiting: deque[Run]
    active: dict[Run, Any] = field(default_factory=dict)
    elsewhere: list[Run] = field(default_factory=list)
    ended: list[Run] = field(default_factory=list)


Watch = Callable[[Progress], None]


class Interrupted(Exception):
    """The launcher was interrupted; its runs have been stopped and can be resumed."""


@contextmanager
def launching(folder: Path) -> Iterator[None]:
    """Show other processes, during the block, that the sweep of a folder has a launcher."""
    with (folder / "launcher").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # several launchers may share a sweep
        yield


def launched(folder: Path) -> bool:
    """Return whether a foreground launcher works on the sweep of a folder."""
    try:
        with (folder / "launcher").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def interruptible(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call `interrupt` once on Ctrl-C, SIGTERM or a closed terminal. A second signal is ignored:
    it must not cut short the stopping of the runs."""

    def handler_once(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        interrupt()

    stop_signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Signals that the caller ignores stay ignored: a sweep under nohup outlives its terminal.
    numbers = [number for number in stop_signals if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler_once) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
