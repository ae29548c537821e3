"""What the launchers that stay have in common: what is going on, and how they are interrupted."""

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
    """What is going on: runs that wait, run (here or under another launcher) and have ended.

    `active` has what the launcher knows them by.
    """

    waiting: deque[Run]
    active: dict[Run, Any] = field(default_factory=dict)
    elsewhere: list[Run] = field(default_factory=list)
    ended: list[Run] = field(default_factory=list)


Watch = Callable[[Progress], None]


class Interrupted(Exception):
    """The launcher was asked to stop; its runs have been stopped and can be carried on."""


@contextmanager
def launching(folder: Path) -> Iterator[None]:
    """For the time of the block, others can see that the sweep of a folder has a launcher."""
    with (folder / "launcher").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # two may share the runs of a sweep
        yield


def launched(folder: Path) -> bool:
    """Whether a launcher that stays is at work on the sweep of a folder."""
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
    """Ctrl-C, SIGTERM and a closed terminal call `interrupt`, once: a second signal must not cut
    short the stopping of the runs."""

    def heard(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        interrupt()

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What the caller ignores stays ignored: a sweep under nohup outlives its terminal.
    numbers = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
