"""The starts of a run as a job, how each ended, and when it is enough.

Being preempted is free. Running out of time is too, as long as the step moves; a run that comes no
further in several starts has failed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from densevit.errors import UserError
from densevit.rundir import Cause, RunFolder, read_json, write_json

# How a start ended. `requeued` and `lost` are what is left to say of one that could not say a word.
End = Literal[
    "", "finished", "failed", "timeout", "preempted", "node", "requeued", "cancelled", "killed",
    "lost", "elsewhere",
]  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One start: `first_step` were done before it, `last_step` after it; times are Unix seconds."""

    job: str
    restart: int
    node: str
    started: float
    first_step: int
    last_step: int = 0
    ended: float = 0.0
    end: End = ""


@dataclass(frozen=True)
class Limits:
    """See `profile.Requeue`."""

    timeouts: int
    node_failures: int


def read(folder: RunFolder) -> list[Attempt]:
    """All starts, the oldest first."""
    record = read_json(folder.attempts_file) or {"attempts": []}
    try:
        return [Attempt(**known(Attempt, attempt)) for attempt in record.get("attempts", [])]
    except (TypeError, AttributeError) as error:
        raise UserError(f"{folder.attempts_file}: is not as it should be: {error!r}") from None


def known(kind: type, record: dict[str, Any]) -> dict[str, Any]:
    """What a record has of a kind's fields: code that is newer may have written more."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in record.items() if name in names}


def begin(folder: RunFolder, job: str, restart: int, node: str, before: End) -> Attempt:
    """Note a new start; `before` is how the one before it ended that could not know.

    That is one which died without a word, or was asked to stop and is here again.
    """
    held, step = read(folder), folder.progress().get("step", 0)
    if held and not held[-1].end:
        end: End = before if held[-1].job == job else "lost"
        held[-1] = replace(held[-1], last_step=step, ended=time.time(), end=end)
    elif held and held[-1].end == "cancelled" and held[-1].job == job:
        held[-1] = replace(held[-1], end=before)
    new = Attempt(job, restart, node, time.time(), step)
    _write(folder, [*held, new])
    return new


def end(folder: RunFolder, how: End) -> None:
    """Note how the newest start ended."""
    *held, last = read(folder)
    step = folder.progress().get("step", 0)
    _write(folder, [*held, replace(last, last_step=step, ended=time.time(), end=how)])


def verdict(attempts: Sequence[Attempt], job: str, limits: Limits) -> tuple[Cause, str]:
    """Whether a run has had enough starts under a job: the cause and the message of its failure,
    both empty while it may go on. A new submission counts anew.
    """
    mine = [attempt for attempt in attempts if attempt.job == job]
    stuck, furthest = 0, mine[0].first_step if mine else 0
    for attempt in mine:
        if attempt.last_step > furthest:
            stuck, furthest = 0, attempt.last_step
        elif attempt.end == "timeout":
            stuck += 1
    if stuck >= limits.timeouts:
        told = f"ran out of time {stuck} times in a row at step {furthest}; give it more hours"
        return "timeout", told
    failures = sum(attempt.end == "node" for attempt in mine)
    if failures >= limits.node_failures:
        nodes = ", ".join(sorted({a.node for a in mine if a.end == "node"}))
        return "node", f"its node failed {failures} times ({nodes})"
    return "", ""


def _write(folder: RunFolder, attempts: Sequence[Attempt]) -> None:
    write_json(folder.attempts_file, {"attempts": [asdict(attempt) for attempt in attempts]})
