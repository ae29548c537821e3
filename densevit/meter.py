"""What a run counts between two logged lines: its numbers, and where the time goes."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from densevit.distributed import World, summed


@dataclass
class Tally:
    """Sums of the numbers of some steps; they stay on the device until they are read."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, numbers: dict[str, Tensor]) -> None:
        """Add the numbers of a step; the same names at every step."""
        if self.sums:
            self.sums = {name: self.sums[name] + value for name, value in numbers.items()}
        else:
            self.sums = dict(numbers)

    def means(self, world: World) -> dict[str, float]:
        """The mean of each number over the steps that count, on all processes; then begin anew.

        `counted` is 1 in a step that counts. Empty if none does. Waits for the device.
        """
        total = summed(torch.stack(list(self.sums.values())), world).tolist()
        values = dict(zip(self.sums, total, strict=True))
        self.sums = {}
        counted = values.pop("counted")
        return {name: value / counted for name, value in values.items()} if counted else {}


class Clock:
    """How long each phase of the steps takes, as the device sees it, without waiting for it.

    On a GPU the phases are told apart by events among its work: what the host does meanwhile is
    hidden, as it should be, and a phase in which the GPU waits for the host is long.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._phase: str | None = None
        self._since = 0.0
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str | None, torch.cuda.Event]] = []

    def mark(self, phase: str | None) -> None:
        """A phase begins, and the one before it ends; None for what is no part of a step."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((phase, event))
            return
        now = time.perf_counter()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def read(self) -> dict[str, float]:
        """Seconds of each phase since the last call. Waits for the device."""
        if self.on_gpu and self._events:
            torch.cuda.synchronize()
            for (phase, start), (_, end) in zip(self._events, self._events[1:], strict=False):
                if phase is not None:
                    taken = start.elapsed_time(end) / 1000
                    self._seconds[phase] = self._seconds.get(phase, 0.0) + taken
            self._events = self._events[-1:]
        else:
            self.mark(self._phase)
        seconds, self._seconds = self._seconds, {}
        return seconds


def peak_memory_mib(device: torch.device) -> float:
    """What torch allocated at most on a GPU; on a CPU the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere
