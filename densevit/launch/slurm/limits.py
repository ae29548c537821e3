"""The limits of the cluster: size of an array, submitted jobs of a user, time of a job."""

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


def longest_hours(partitions: str | None) -> float | None:
    """Return the hours that a job may ask for in the longest of its partitions (`a,b`; without a
    name: in the default one), None if there is no limit or it is not known."""
    try:
        text = call(["scontrol", "show", "partition", "--all", "--oneliner"])
    except NoAnswer:
        return None
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
    key, values = ("PartitionName", partitions.split(",")) if partitions else ("Default", ["YES"])
    found = [_hours(row.get("MaxTime", "")) for row in rows if row.get(key) in values]
    limits = [hours for hours in found if hours is not None]
    return max(limits) if limits and len(limits) == len(found) else None


def _hours(text: str) -> float | None:
    """Return the hours of Slurm's `days-hours:minutes:seconds`; None for UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 24 * days + hours + minutes / 60 + seconds / 3600
