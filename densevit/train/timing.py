"""Sums of metrics and time per phase between two logged lines, and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from densevit.utils.distributed import World, all_reduce_sum


@dataclass
class MetricSums:
    """Sums of metrics over steps; they stay on the device until they are read."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the metrics of a step; names are the same at every step."""
        if self.values:
            metrics = {name: self.values[name] + value for name, value in metrics.items()}
        self.values = metrics

    def means(self, world: World) -> dict[str, float]:
        """Return the mean of each metric over the counted steps of all processes, and reset.

        `counted` is 1 in a counted step. Empty if there is none. Waits for the device.
        """
        totals = all_reduce_sum(torch.stack(list(self.values.values())), world).tolist()
        sums = dict(zip(self.values, totals, strict=True))
        self.values = {}
        counted = sums.pop("counted")
        return {name: value / counted for name, value in sums.items()} if counted else {}


class PhaseTimer:
    """Time of each phase of the steps on the device, measured without waiting for it.

    On a GPU, CUDA events separate the phases. Host work that overlaps with GPU work is not counted;
    a phase in which the GPU waits for the host is long.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._phase: str | None = None
        self._since = 0.0
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str | None, torch.cuda.Event]] = []

    def mark(self, phase: str | None) -> None:
        """Begin a phase and end the previous one; None is time outside of a step."""
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
        """Return the seconds of each phase since the last call. Waits for the device."""
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
    """Return torch's peak allocation on a GPU, or the process's peak resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere
