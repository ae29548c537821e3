"""The states of a run in a sweep, and the records that hold them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from densevit.runs.directory import RunFolder, has_results
from densevit.runs.status import SILENT_SECONDS, Cause, Status
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError

StateName = Literal[
    "finished", "stopped", "failed", "running", "queued", "pending", "cancelled", "lost", "unknown"
]  # fmt: skip
STATE_NAMES: tuple[StateName, ...] = get_args(StateName)
STARTABLE = ("pending", "failed", "cancelled", "lost", "stopped")
MISSING = "a benchmark is still to be evaluated, or one of its files is gone"
PENDING = Status("pending")


class Submitted(Protocol):
    """The facts of a submission that belong to no launcher in particular."""

    @property
    def created(self) -> float: ...
    @property
    def resources(self) -> Mapping[str, Any]: ...
    @property
    def code(self) -> str: ...
    def log(self, job: str) -> Path: ...


@dataclass(frozen=True)
class RunState:
    """A run's state in the sweep, the reason for it, and the run's job.

    `cause` and `why` explain the state; `status` is what the run has recorded itself.
    """

    state: StateName
    why: str = ""
    cause: Cause = ""
    status: Status = PENDING
    job: str = ""
    submission: Submitted | None = None

    def log_file(self, folder: RunFolder) -> Path:
        """Return the run's log or, if that is missing or empty, the existing log of its job."""
        own = folder.log_file
        if self.submission is None or not self.job or (own.exists() and own.stat().st_size):
            return own
        of_job = self.submission.log(self.job)
        return of_job if of_job.exists() else own


@dataclass(frozen=True)
class Recorded:
    """A run's directory; `complete`: all results are there; `damage`: why it cannot be read."""

    status: Status
    complete: bool = False
    damage: str = ""


@dataclass(frozen=True)
class Observed:
    """The state of each run by its id; `silent` says which queue of jobs gave no answer."""

    runs: Mapping[str, RunState]
    silent: str = ""


def read_recorded(plan: Plan, run: Run) -> Recorded:
    """Read a run's status and check whether its results are complete.

    A `finished` run may lack a benchmark that was added later and is evaluated from its checkpoint;
    a `failed` run may have failed at a benchmark that this plan does not have.
    """
    folder = plan.run_folder(run)
    try:
        status = folder.recorded_status()
        if status == PENDING:
            return Recorded(PENDING)
        # A run may be killed after it has written its results and before its final status.
        at_work = status.state == "running" and folder.locked()
        return Recorded(status, complete=not at_work and has_results(folder, run.config))
    except UserError as error:
        return Recorded(PENDING, damage=str(error))


def read_states(plan: Plan) -> dict[str, RunState]:
    """Return the state of each run by its id, from its directory alone: no launcher is asked."""

    def state(run: Run) -> RunState:
        return unless_damaged(lambda: classify(plan.run_folder(run), read_recorded(plan, run)))

    return {run.id: state(run) for run in plan.runs}


def unless_damaged(classify: Callable[[], RunState]) -> RunState:
    """Return a run's state; `unknown` if its files are damaged, which must not hide other runs."""
    try:
        return classify()
    except UserError as error:
        return RunState("unknown", str(error))


def classify(folder: RunFolder, recorded: Recorded) -> RunState:
    """Return the state of a run without a job."""
    if recorded.complete:
        return RunState("finished", status=recorded.status)
    if recorded.damage:
        return RunState("failed", recorded.damage, "code")
    return classify_without_job(folder, recorded.status)


def classify_without_job(folder: RunFolder, status: Status) -> RunState:
    """Return the state of a run that no job is known of, from its status and its lock."""
    if status.state == "running":
        if folder.locked():
            return RunState("running", status=status)
        if status.host == socket.gethostname():
            newer = folder.status()  # it may have ended between the two reads
            if newer.state != status.state or newer.message:
                return RunState(newer.state, newer.message, newer.cause, status=newer)
        if time.time() - status.updated < SILENT_SECONDS:
            why = f"its lock on {status.host} cannot be seen from here; it may be alive"
            return RunState("unknown", why, status=status)
        return RunState("lost", f"no update from {status.host} for a long time", status=status)
    if status.state == "finished":
        return RunState("pending", MISSING, status=status)
    return RunState(status.state, status.message, status.cause, status=status)
