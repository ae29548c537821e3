"""The attempts of a run under Slurm: how each ended, and when a run has used them up.

A preemption does not count. Neither does a timeout, as long as the step advances; a run that gets
no further in several attempts has failed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from densevit.runs.directory import RunFolder
from densevit.runs.record_file import CHECKED, Count, RecordKind, Time, read_record
from densevit.runs.status import Cause
from densevit.utils.files import write_json

# How an attempt ended; `requeued` and `lost` stand for one that could not record its end.
End = Literal[
    "", "finished", "failed", "timeout", "preempted", "node", "requeued", "cancelled", "killed",
    "lost", "elsewhere",
]  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One attempt, from step `first_step` to step `last_step`; times are Unix seconds."""

    job: str
    restart: Count
    node: str
    started: Time
    first_step: Count
    last_step: Count = 0
    ended: Time = 0.0
    end: End = ""


@CHECKED
class _AttemptsRecord(TypedDict):
    """attempts.json; a newer version may have written more of each attempt."""

    attempts: NotRequired[list[Attempt]]


ATTEMPTS = RecordKind(
    _AttemptsRecord, "remove the file; the record of the run's starts as jobs is all that is lost"
)


@dataclass(frozen=True)
class Limits:
    """The limits of a run's attempts; see `profile.Requeue`."""

    timeouts: Count
    node_failures: Count


def read(folder: RunFolder) -> list[Attempt]:
    """Return all attempts of a run, the oldest first."""
    record = read_record(folder.attempts_file, ATTEMPTS)
    return record.get("attempts", []) if record else []


def begin(folder: RunFolder, job: str, restart: int, node: str, before: End) -> Attempt:
    """Record a new attempt.

    `before` is how the previous attempt ended, if it could not record this itself: it died, or it
    recorded `cancelled` and the same job runs again.
    """
    attempts, step = read(folder), folder.progress().get("step", 0)
    if attempts and not attempts[-1].end:
        end: End = before if attempts[-1].job == job else "lost"
        attempts[-1] = replace(attempts[-1], last_step=step, ended=time.time(), end=end)
    elif attempts and attempts[-1].end == "cancelled" and attempts[-1].job == job:
        attempts[-1] = replace(attempts[-1], end=before)
    new = Attempt(job, restart, node, time.time(), step)
    _write(folder, [*attempts, new])
    return new


def end(folder: RunFolder, how: End) -> None:
    """Record how the newest attempt ended."""
    *attempts, last = read(folder)
    step = folder.progress().get("step", 0)
    _write(folder, [*attempts, replace(last, last_step=step, ended=time.time(), end=how)])


def verdict(attempts: Sequence[Attempt], job: str, limits: Limits) -> tuple[Cause, str]:
    """Return the cause and message of failure of a run that has used up its attempts under a job.

    Both are empty while it may go on. A new submission counts anew.
    """
    mine = [attempt for attempt in attempts if attempt.job == job]
    stuck, furthest = 0, mine[0].first_step if mine else 0
    for attempt in mine:
        if attempt.last_step > furthest:
            stuck, furthest = 0, attempt.last_step
        elif attempt.end == "timeout":
            stuck += 1
    if stuck >= limits.timeouts:
        message = f"ran out of time {stuck} times in a row at step {furthest}; give it more hours"
        return "timeout", message
    failures = sum(attempt.end == "node" for attempt in mine)
    if failures >= limits.node_failures:
        nodes = ", ".join(sorted({a.node for a in mine if a.end == "node"}))
        return "node", f"its node failed {failures} times ({nodes})"
    return "", ""


def _write(folder: RunFolder, attempts: Sequence[Attempt]) -> None:
    write_json(folder.attempts_file, {"attempts": [asdict(attempt) for attempt in attempts]})
