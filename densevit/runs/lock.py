"""The lock of a run directory: only one process trains a run."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

OPEN_FILES: set[IO[str]] = set()


def close_after_fork() -> None:
    """Close the lock files that a forked process (such as a data loader worker) inherited. Left
    open, they would keep the run locked while a worker outlives a killed main process."""
    for file in OPEN_FILES:
        file.close()
    OPEN_FILES.clear()


os.register_at_fork(after_in_child=close_after_fork)


def replaced(path: Path) -> bool:
    """Return True if this process holds a lock file that is no longer the one at `path`."""
    held = [file for file in OPEN_FILES if Path(file.name) == path]
    try:
        return any(not os.path.samestat(os.fstat(file.fileno()), path.stat()) for file in held)
    except FileNotFoundError:
        return True


def try_lock(file: IO[str], patience: float = 1.0) -> bool:
    """Take the exclusive lock, waiting for observers, who hold it for microseconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
