"""What the launchers that stay have in common: what is going on, and how they are interrupted."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
