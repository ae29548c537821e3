"""Where every run of a plan stands: what its directory says, together with what Slurm says.

What nobody can know is `unknown` and never `failed`: a controller that is down, or a lock that
cannot be seen from here, says nothing about a run.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from densevit.errors import UserError
from densevit.lifecycle import has_results
from densevit.rundir import SILENT_SECONDS, Cause, RunFolder, Status
from densevit.sweep.grid import Run
from densevit.sweep.launch.slurm import attempts, cluster, records
from densevit.sweep.launch.slurm.records import Submission
from densevit.sweep.plan import Plan

Word = Literal[
    "finished", "stopped", "failed", "running", "queued", "pending", "cancelled", "lost", "unknown"
]  # fmt: skip
WORDS: tuple[Word, ...] = get_args(Word)
STARTABLE = ("pending", "failed", "cancelled", "lost", "stopped")
WAITS_IN_VAIN = "the sweep's command decides"
MISSING = "a benchmark is still to be evaluated"

# States of jobs that have a machine; others that have not ended wait for one.
AT_WORK = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}

_CAUSES: dict[str, Cause] = {
    "TIMEOUT": "timeout", "DEADLINE": "timeout", "OUT_OF_MEMORY": "oom", "NODE_FAIL": "node",
    "BOOT_FAIL": "node", "FAILED": "killed",
}  # fmt: skip


PENDING = Status("pending")


@dataclass(frozen=True)
class Standing:
    """A run's state in the sweep, why it is that, and the job that has it.

    `cause` and `why` belong to the state; `status` is what the run says of itself.
    """

    state: Word
    why: str = ""
    cause: Cause = ""
    status: Status = PENDING
    job: str = ""
    submission: Submission | None = None


@dataclass(frozen=True)
class Look:
    """What a run's directory says: `complete` if everything that is wanted of the run is there,
    `damage` if it cannot be read.
    """

    status: Status
    complete: bool = False
    damage: str = ""


@dataclass(frozen=True)
class Observed:
    """Run id to where it stands; `silent` is why Slurm could not be asked, if it was needed."""

    runs: Mapping[str, Standing]
    silent: str = ""


@dataclass(frozen=True)
class Queue:
    """What Slurm says: jobs by id, and how those ended that it has forgotten."""

    jobs: Mapping[str, cluster.Job]
    ended: Mapping[str, cluster.Job]
    silent: str = ""


def observe(plan: Plan, submissions: Sequence[Submission] | None = None) -> Observed:
    """Look at all runs of a plan: their directories, and at most one call each of squeue and sacct.

    Slurm is asked only where a job has a run that has not ended.
    """
    if submissions is None:
        submissions = records.read_all(plan.outputs)
    newest = records.newest_jobs(submissions)
    looked = {run.id: _look(plan, run) for run in plan.runs}
    # A run that says `failed` or `cancelled` may be back in the queue.
    asked = {
        run: newest[run] for run, look in looked.items() if run in newest and not look.complete
    }
    queue = ask(asked.values()) if asked else Queue({}, {})
    for run in plan.runs:  # whose job ended between the two looks may have said so since
        if run.id in asked and asked[run.id][1] not in queue.jobs:
            looked[run.id] = _look(plan, run)
    found = {}
    for run in plan.runs:
        has = asked.get(run.id, (None, ""))
        try:
            found[run.id] = judge(plan.run_folder(run), looked[run.id], *has, queue)
        except UserError as error:  # a damaged file of one run takes nothing from the others
            found[run.id] = Standing("unknown", str(error))
    return Observed(found, queue.silent)


def ask(jobs: Iterable[tuple[Submission, str]]) -> Queue:
    """What Slurm says of some jobs."""
    wanted = list(jobs)
    try:
        told = cluster.queue({submission.user for submission, _ in wanted})
    except cluster.NoAnswer as silent:
        return Queue({}, {}, str(silent))
    # As `Submission.owns`, for all of them at once.
    names = {chunk.job: chunk.name for submission, _ in wanted for chunk in submission.chunks}
    living = {id: job for id, job in told.items() if job.name == names.get(id.partition("_")[0])}
    gone = [job for _, job in wanted if job not in living or not living[job].active]
    try:
        ended = cluster.accounts(gone) if gone else {}
    except cluster.NoAnswer:  # no accounts are kept: the directories have to do
        ended = {}
    # squeue shows for minutes how a job has ended; the accounts may be late.
    short = {id: job for id, job in living.items() if not job.active}
    settled = {id: job for id, job in ended.items() if not job.active}
    return Queue({id: job for id, job in living.items() if job.active}, {**short, **settled})


def judge(
    folder: RunFolder, look: Look, submission: Submission | None, job: str, queue: Queue
) -> Standing:
    """Where a run stands; pure but for a look at its lock, its starts and the canary's word."""
    status = look.status
    if look.complete:
        return Standing("finished", status=status)
    if submission is None:
        return Standing("failed", look.damage, "code") if look.damage else _alone(folder, status)
    facts = {"status": status, "job": job, "submission": submission}
    living = queue.jobs.get(job)
    if living is not None:
        return _living(folder, living, queue, facts)
    if look.damage:
        state: Word = "unknown" if queue.silent else "failed"
        return Standing(state, look.damage, "" if queue.silent else "code", **facts)
    if queue.silent:
        if _failed_under(folder, job, status):
            return Standing("failed", status.message, status.cause, **facts)
        if status.state == "running" and folder.locked():
            return Standing("running", f"on {status.host}", **facts)
        return Standing("unknown", f"Slurm does not answer: {queue.silent}", **facts)
    return _gone(folder, queue.ended.get(job), facts)


def _look(plan: Plan, run: Run) -> Look:
    """What a run says.

    One that says `finished` may lack a benchmark that was added later and is evaluated from its
    checkpoint; one that says `failed` may have failed at a benchmark that is not wanted here.
    """
    folder = plan.run_folder(run)
    try:
        status = folder.word()
        if status == PENDING:
            return Look(PENDING)
        # It may be killed after its results are written, and before it has said so.
        at_work = status.state == "running" and folder.locked()
        return Look(status, complete=not at_work and has_results(folder, run.config))
    except UserError as error:
        return Look(PENDING, damage=str(error))
    except (TypeError, KeyError, AttributeError) as error:
        told = f"{folder.path}: status.json or results.json is not as it should be: {error!r}"
        return Look(PENDING, damage=told)


def _failed_under(folder: RunFolder, job: str, status: Status) -> bool:
    """Whether the run has said that it failed, in its newest start, which was under this job."""
    if status.state != "failed":
        return False
    held = attempts.read(folder)
    return bool(held) and held[-1].job == job and held[-1].end in ("failed", "killed", "timeout")


def _alone(folder: RunFolder, status: Status) -> Standing:
    """A run that no job has: the local launcher, or `densevit train`."""
    if status.state == "running":
        if folder.locked():
            return Standing("running", status=status)
        if status.host == socket.gethostname():
            told = folder.status()  # it may have ended between two looks
            if told.state != status.state or told.message:
                return Standing(told.state, told.message, told.cause, status=told)
        if time.time() - status.updated < SILENT_SECONDS:
            why = f"its lock on {status.host} cannot be seen from here; it may be alive"
            return Standing("unknown", why, status=status)
        return Standing("lost", f"no word from {status.host} for a long time", status=status)
    if status.state == "finished":
        return Standing("pending", MISSING, status=status)
    return Standing(status.state, status.message, status.cause, status=status)


def _living(
    folder: RunFolder, living: cluster.Job, queue: Queue, facts: dict[str, Any]
) -> Standing:
    """A run whose job waits or runs."""
    submission: Submission = facts["submission"]
    if living.state not in AT_WORK:
        first = next(iter(submission.elements()))
        if living.held and submission.canary and living.id != first:
            waits = f"waits for the first steps of {submission.tasks[0][0]}"
            vain = submission.canary_word() is not None or first not in queue.jobs
            return Standing("queued", f"{WAITS_IN_VAIN}: {waits}" if vain else waits, **facts)
        return Standing("queued", living.reason.strip("()"), **facts)
    # In a job of several runs one may have ended while the others go on.
    status: Status = facts["status"]
    if _failed_under(folder, living.id, status):
        return Standing("failed", status.message, status.cause, **facts)
    return Standing("running", f"on {living.nodes}", **facts)


def _gone(folder: RunFolder, ended: cluster.Job | None, facts: dict[str, Any]) -> Standing:
    """A run whose job is not in the queue any more and that is not finished."""
    status: Status = facts["status"]
    if status.state == "running" and folder.locked():
        return Standing("running", f"on {status.host}, and no job of Slurm's", **facts)
    submission: Submission = facts["submission"]
    if ended is None and submission.user != cluster.user():  # a cluster may hide others' jobs
        return Standing("unknown", f"the job of {submission.user} cannot be seen", **facts)
    held = attempts.read(folder)
    if not held or held[-1].job != facts["job"]:
        return _gone_unstarted(folder, ended, facts)
    if status.state == "finished":
        return Standing("pending", MISSING, **facts)
    if status.state == "failed":
        out = status.cause == "killed" and ended is not None and ended.state == "OUT_OF_MEMORY"
        return Standing("failed", status.message, "oom" if out else status.cause, **facts)
    if ended is None or ended.state == "COMPLETED":
        state: Word = "cancelled" if status.state == "cancelled" else "lost"
        return Standing(state, status.message or "its job ended without a word", **facts)
    if ended.state in ("CANCELLED", "REVOKED"):
        return Standing("cancelled", _told(ended), **facts)
    if ended.state == "PREEMPTED" or status.state == "cancelled":
        return Standing("lost", f"{_told(ended)}, and not queued again", **facts)
    return Standing("failed", _told(ended), _CAUSES.get(ended.state, "killed"), **facts)


def _gone_unstarted(
    folder: RunFolder, ended: cluster.Job | None, facts: dict[str, Any]
) -> Standing:
    """A run whose job has left the queue before it came to the run."""
    submission: Submission = facts["submission"]
    if facts["status"].updated > submission.created:  # somebody has started it by hand since
        return replace(_alone(folder, facts["status"]), job=facts["job"], submission=submission)
    word = submission.canary_word()
    if word is not None and not word["passed"]:
        why = f"held back: the first steps of {word['run']} failed: {word['message']}"
        return Standing("pending", why, **facts)
    if ended is not None and ended.state == "FAILED":
        why = f"its job failed before the run could start: {_told(ended)}"
        return Standing("failed", why, "code", **facts)
    state: Word = "cancelled" if ended and ended.state == "CANCELLED" else "lost"
    return Standing(state, _told(ended) or "its job is gone and never started", **facts)


def _told(ended: cluster.Job | None) -> str:
    """Slurm's word on how a job ended."""
    if ended is None:
        return ""
    where = f" on {ended.nodes}" if ended.nodes and "None" not in ended.nodes else ""
    detail = f" {ended.reason}" if ended.reason and ended.reason != "None" else ""
    return f"Slurm says {ended.state}{detail}{where}"
