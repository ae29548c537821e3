"""What the machine does while a run trains: processor, memory, network and the run's GPU.

The numbers have the names under which MLflow shows system metrics, and mean what they mean there.
"""

from __future__ import annotations

import logging
import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

log = logging.getLogger("densevit")

SECONDS = 5.0  # between two samples
# How long the end of a training waits for a sample that is being taken: a driver may be stuck.
PATIENCE = 2.0
# They grow from the start of the sampling on, so that the last value is the one to tell.
_CARRIED = ("system/network_receive_megabytes", "system/network_transmit_megabytes")

Sample = dict[str, float]
Source = Callable[[], Sample]


class Gauges:
    """Samples that one thread takes and another reads."""

    def __init__(self, sources: dict[str, Source]) -> None:
        self._sources = sources
        self._samples: deque[Sample] = deque()  # of which each thread has its own end
        self._silent: set[str] = set()

    def watch(self, ended: threading.Event) -> None:
        """Sample until it has ended."""
        self._sample()  # shares and counts are those since the one before
        while not ended.wait(SECONDS):
            self._samples.append(self._sample())

    def read(self) -> dict[str, float]:
        """The mean of each number over the samples since the last call; empty if there is none.

        Percent, megabytes (10⁶ bytes) and watts, to two decimals. What the network has carried is
        the sum since the start of the sampling.
        """
        values: dict[str, list[float]] = {}
        for _ in range(len(self._samples)):
            for name, value in self._samples.popleft().items():
                values.setdefault(name, []).append(value)
        return {
            name: round(held[-1] if name in _CARRIED else statistics.fmean(held), 2)
            for name, held in values.items()
        }

    def _sample(self) -> Sample:
        """What all sources say; of one that does not answer it is told once."""
        found: Sample = {}
        for name, source in self._sources.items():
            try:
                found |= source()
            except Exception as error:  # whatever a driver says, the run must not suffer from it
                if name not in self._silent:
                    self._silent.add(name)
                    _complain(name, error)
        return found


@contextmanager
def sampling(device: torch.device) -> Iterator[Gauges]:
    """Gauges that a thread samples every `SECONDS` until the block ends, however it ends.

    The thread asks the kernel and the driver, and nothing of torch. What could hold a lock that a
    forked process needs, an import or the opening of a library, is done before it starts; in a
    forked process there is no such thread.
    """
    sources = _opened("machine", _machine)
    if device.type == "cuda":
        sources |= _opened("GPU", lambda: _gpu(device))
    gauges, ended = Gauges(sources), threading.Event()
    thread = threading.Thread(target=gauges.watch, args=(ended,), name="gauges", daemon=True)
    try:
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no more threads to give
            _complain("machine", error)
        yield gauges
    finally:
        ended.set()
        if thread.is_alive():
            thread.join(PATIENCE)


def _opened(name: str, sources: Callable[[], dict[str, Source]]) -> dict[str, Source]:
    """Sources by what they tell of; none where their library or driver is missing."""
    try:
        return sources()
    except Exception as error:  # as in a sample
        _complain(name, error)
        return {}


def _complain(name: str, error: Exception) -> None:
    log.info("numbers of the %s are not logged: %s: %s", name, type(error).__name__, error)


def _machine() -> dict[str, Source]:
    """Of the whole machine, whoever else works on it."""
    import psutil

    start: list[tuple[int, int]] = []

    def processor() -> Sample:
        return {"system/cpu_utilization_percentage": psutil.cpu_percent()}

    def memory() -> Sample:
        held = psutil.virtual_memory()
        return {
            "system/system_memory_usage_megabytes": held.used / 1e6,
            "system/system_memory_usage_percentage": 100 * held.used / held.total,
        }

    def network() -> Sample:
        found = psutil.net_io_counters(nowrap=False)
        if found is None:
            raise OSError("there is none")
        now = found.bytes_recv, found.bytes_sent
        if not start:
            start.append(now)
        return {name: (n - s) / 1e6 for name, n, s in zip(_CARRIED, now, start[0], strict=True)}

    return {"processor": processor, "memory": memory, "network": network}


def _gpu(device: torch.device) -> dict[str, Source]:
    """Of the GPU of this process, which is 0 whatever number it has on its machine."""
    import pynvml

    pynvml.nvmlInit()
    # The driver numbers all GPUs, CUDA those that it was told to show.
    gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def use() -> Sample:
        rates = pynvml.nvmlDeviceGetUtilizationRates(gpu)
        return {"system/gpu_0_utilization_percentage": float(rates.gpu)}

    def memory() -> Sample:
        held = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        return {
            "system/gpu_0_memory_usage_megabytes": held.used / 1e6,
            "system/gpu_0_memory_usage_percentage": 100 * held.used / held.total,
        }

    def power() -> Sample:
        return {"system/gpu_0_power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000}

    return {"GPU's use": use, "GPU's memory": memory, "GPU's power": power}
