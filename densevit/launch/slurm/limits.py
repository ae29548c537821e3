"""The limits of the cluster: size of an array, submitted jobs of a user."""

from __future__ import annotations

import re

from densevit.launch.slurm.commands import NoAnswer, call, user


def largest_array() -> int:
    """Return the largest number of elements in an array (MaxArraySize bounds the index, from 0)."""
    text = call(["scontrol", "show", "config"])
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return max(1, int(found[1])) if found else 1001


def submit_limit(qos: str | None) -> int | None:
    """Return how many jobs the user may have submitted at once, None if no limit is known."""
    limits = []
    try:
        show = ["-n", "-P", "show"]
        wanted = ["assoc", f"user={user()}", "format=MaxSubmitJobs,DefaultQOS"]
        rows = [line.split("|") for line in call(["sacctmgr", *show, *wanted]).splitlines()]
        limits += [row[0] for row in rows]
        names = [qos] if qos else sorted({row[1] for row in rows if row[1]})
        for name in names:
            limits += call(["sacctmgr", *show, "qos", name, "format=MaxSubmitPU"]).split()
    except (NoAnswer, IndexError):
        return None
    numbers = [int(text) for text in limits if text.strip().isdecimal()]
    return min(numbers) if numbers else None
