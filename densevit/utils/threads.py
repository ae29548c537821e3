"""The number of threads that a process computes with on CPUs. Importing this imports no torch."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import suppress

_LIMIT = "OMP_NUM_THREADS"  # torch and OpenMP read it, too


def processors() -> int:
    """Return how many processors this process was given: those that it may run on, or fewer by
    OMP_NUM_THREADS, which launchers and users set."""
    usable = len(os.sched_getaffinity(0))
    with suppress(KeyError, ValueError):
        return max(1, min(usable, int(os.environ[_LIMIT])))
    return usable


def threads(wanted: int) -> int:
    """Return the number of threads of a run that wants so many: never more than processors."""
    return min(wanted, processors())


def limit_processors(environment: MutableMapping[str, str], count: int) -> None:
    """Give a process with this environment `count` processors, or fewer if the user says so."""
    with suppress(KeyError, ValueError):
        count = min(count, int(environment[_LIMIT]))
    environment[_LIMIT] = str(max(1, count))
    # Else a thread that waits for the others spins, and takes the processor that they need.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
