"""Handlers of SIGTERM, SIGINT and SIGUSR2, so that training stops between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from densevit.utils.errors import StoppedNow

if TYPE_CHECKING:
    from densevit.train.trainer import StopSignal


TWICE_SECONDS = 0.5

# Slurm and submitit send SIGUSR2 before they end a job; most others send SIGTERM.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


@contextmanager
def note_signals(given: StopSignal | None) -> Iterator[StopSignal]:
    """Yield a function that returns the received stop signal, 0 if none; `given`, if it is one."""
    if given is not None:
        yield given
        return
    received: list[int] = []
    moments: list[float] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        moments.append(time.monotonic())
        # A second Ctrl-C stops at once. Other signals may arrive more than once, from a launcher
        # and from processes that it started.
        if number == signal.SIGINT and moments[-1] - moments[0] > TWICE_SECONDS:
            raise StoppedNow(signal.Signals(number).name)

    def stop_signal() -> int:
        return received[0] if received else 0

    if threading.current_thread() is not threading.main_thread():
        yield stop_signal  # only the main thread may set handlers
        return
    previous = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield stop_signal
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
