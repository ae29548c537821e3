"""System metrics during training: CPU, memory, network and the run's GPU.

Names and meanings are those of MLflow's system metrics.
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
# The end of training waits so long for a running sample: a driver may hang.
JOIN_SECONDS = 2.0
# Sums since the start of sampling: the last value is logged, not the mean.
_CUMULATIVE = ("system/network_receive_megabytes", "system/network_transmit_megabytes")

Sample = dict[str, float]
Source = Callable[[], Sample]


class SystemMetrics:
    """System metrics that one thread samples and another reads."""

    def __init__(self, sources: dict[str, Source]) -> None:
        self._sources = sources
        self._samples: deque[Sample] = deque()  # each thread uses its own end
        self._failed: set[str] = set()

    def watch(self, ended: threading.Event) -> None:
        """Sample until `ended` is set."""
        self._sample()  # sets the reference: some values are relative to the previous sample
        while not ended.wait(SECONDS):
            self._samples.append(self._sample())

    def read(self) -> dict[str, float]:
        """Return the mean of each metric over the samples since the last call; empty if none.

        In percent, megabytes (10⁶ bytes) and watts, to two decimals. Network traffic is the sum
        since the start of sampling.
        """
        values: dict[str, list[float]] = {}
        for _ in range(len(self._samples)):
            for name, value in self._samples.popleft().items():
                values.setdefault(name, []).append(value)
        return {
            name: round(series[-1] if name in _CUMULATIVE else statistics.fmean(series), 2)
            for name, series in values.items()
        }

    def _sample(self) -> Sample:
        """Read all sources; log a failing source only once."""
        sample: Sample = {}
        for name, source in self._sources.items():
            try:
                sample |= source()
            except Exception as error:  # drivers may raise anything; the run must not fail
                if name not in self._failed:
                    self._failed.add(name)
                    _log_failure(name, error)
        return sample


@contextmanager
def sampling(device: torch.device) -> Iterator[SystemMetrics]:
    """Yield system metrics that a thread samples every `SECONDS` until the block ends.

    The thread calls the kernel and the driver, but not torch. Imports and the opening of libraries
    could hold a lock that a forked process needs, so they happen before the thread starts. A forked
    process has no such thread.
    """
    sources = _opened("machine", _machine)
    if device.type == "cuda":
        sources |= _opened("GPU", lambda: _gpu(device))
    metrics, ended = SystemMetrics(sources), threading.Event()
    thread = threading.Thread(
        target=metrics.watch, args=(ended,), name="system metrics", daemon=True
    )
    try:
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no free thread
            _log_failure("machine", error)
        yield metrics
    finally:
        ended.set()
        if thread.is_alive():
            thread.join(JOIN_SECONDS)


def _opened(name: str, sources: Callable[[], dict[str, Source]]) -> dict[str, Source]:
    """Return the sources by name; empty if their library or driver is missing."""
    try:
        return sources()
    except Exception as error:  # as in a sample
        _log_failure(name, error)
        return {}


def _log_failure(name: str, error: Exception) -> None:
    log.info("system metrics of the %s are not logged: %s: %s", name, type(error).__name__, error)


def _machine() -> dict[str, Source]:
    """Return the sources of the whole machine, including other processes."""
    import psutil

    start: list[tuple[int, int]] = []

    def processor() -> Sample:
        return {"system/cpu_utilization_percentage": psutil.cpu_percent()}

    def memory() -> Sample:
        usage = psutil.virtual_memory()
        return {
            "system/system_memory_usage_megabytes": usage.used / 1e6,
            "system/system_memory_usage_percentage": 100 * usage.used / usage.total,
        }

    def network() -> Sample:
        counters = psutil.net_io_counters(nowrap=False)
        if counters is None:
            raise OSError("there is none")
        now = counters.bytes_recv, counters.bytes_sent
        if not start:
            start.append(now)
        return {name: (n - s) / 1e6 for name, n, s in zip(_CUMULATIVE, now, start[0], strict=True)}

    return {"processor": processor, "memory": memory, "network": network}


def _gpu(device: torch.device) -> dict[str, Source]:
    """Return the sources of this process's GPU, named 0 whatever its number on the machine."""
    import pynvml

    pynvml.nvmlInit()
    # The driver numbers all GPUs, CUDA only the visible ones.
    gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def utilization() -> Sample:
        rates = pynvml.nvmlDeviceGetUtilizationRates(gpu)
        return {"system/gpu_0_utilization_percentage": float(rates.gpu)}

    def memory() -> Sample:
        usage = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        return {
            "system/gpu_0_memory_usage_megabytes": usage.used / 1e6,
            "system/gpu_0_memory_usage_percentage": 100 * usage.used / usage.total,
        }

    def power() -> Sample:
        return {"system/gpu_0_power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000}

    return {"GPU's utilization": utilization, "GPU's memory": memory, "GPU's power": power}
