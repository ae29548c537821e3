"""Processes of this job that the kernel has killed for lack of memory.

The job's control group counts them; without a control group they are not known.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def oom_kills(own: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> int:
    """Return how many processes of this control group were killed; 0 if it cannot be read.

    Source: the kernel's documentation of cgroup v2 (memory.events) and v1 (memory.oom_control).
    """
    found = 0
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found = max(found, _count(root / path.lstrip("/") / "memory.events"))
            elif "memory" in controllers.split(","):
                found = max(
                    found, _count(root / "memory" / path.lstrip("/") / "memory.oom_control")
                )
    return found


def _count(file: Path) -> int:
    with suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0
