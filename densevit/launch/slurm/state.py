"""The state of a run from what Slurm reports of its job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from densevit.launch.run_state import (
    MISSING,
    Recorded,
    RunState,
    StateName,
    classify,
    classify_without_job,
)
from densevit.launch.slurm import attempts, commands
from densevit.launch.slurm.submissions import Submission
from densevit.runs.directory import RunFolder
from densevit.runs.status import Cause, Status
from densevit.utils.files import last_lines

WAITS_IN_VAIN = "the sweep's command decides"

# States of jobs that have a node; other jobs that have not ended wait for one.
AT_WORK = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
_CAUSES: dict[str, Cause] = {
    "TIMEOUT": "timeout", "DEADLINE": "timeout", "OUT_OF_MEMORY": "oom", "NODE_FAIL": "node",
    "BOOT_FAIL": "node", "FAILED": "killed",
}  # fmt: skip
# Reasons that no waiting removes: Slurm keeps such a job in the queue for ever.
_PERMANENT = re.compile(
    r"Partition(Time|Node)Limit|BadConstraints|Invalid(Account|QOS)|(Assoc|QOS)Max\w+PerJob"
)
_NEVER = "it can never start; correct its resources, and start the sweep again with --replace"
_FAILED_ENDS = ("failed", "killed", "timeout")  # of an attempt


@dataclass(frozen=True)
class Queue:
    """Slurm's answer: active jobs and ended jobs by id; `silent` is why there is none."""

    jobs: Mapping[str, commands.Job]
    ended: Mapping[str, commands.Job]
    silent: str = ""


def ask(jobs: Iterable[tuple[Submission, str]]) -> Queue:
    """Query squeue and sacct for some jobs."""
    ours = list(jobs)
    try:
        queued = commands.queue({submission.user for submission, _ in ours})
    except commands.NoAnswer as silent:
        return Queue({}, {}, str(silent))
    # The check of `Submission.owns`, for all jobs at once.
    names = {chunk.job: chunk.name for submission, _ in ours for chunk in submission.chunks}
    living = {id: job for id, job in queued.items() if job.name == names.get(id.partition("_")[0])}
    gone = [job for _, job in ours if job not in living or not living[job].active]
    try:
        ended = commands.accounts(gone) if gone else {}
    except commands.NoAnswer:  # no accounting: the directories must suffice
        ended = {}
    # squeue shows an ended job for some minutes; sacct may be late.
    short = {id: job for id, job in living.items() if not job.active}
    settled = {id: job for id, job in ended.items() if not job.active}
    return Queue({id: job for id, job in living.items() if job.active}, {**short, **settled})


@dataclass(frozen=True)
class _JobRun:
    """A run with a job: its directory, what it has recorded, and its newest job."""

    folder: RunFolder
    status: Status
    submission: Submission
    job: str

    def state(self, state: StateName, why: str = "", cause: Cause = "") -> RunState:
        return RunState(state, why, cause, self.status, self.job, self.submission)

    def recorded_failure(self) -> RunState:
        return self.state("failed", self.status.message, self.status.cause)

    def locked(self) -> bool:
        """Return whether the run has the status `running`, and a process that holds its lock."""
        return self.status.state == "running" and self.folder.locked()

    def failed_under_job(self) -> bool:
        """Return whether the run has recorded a failure, in its newest attempt, under this job."""
        if self.status.state != "failed":
            return False
        newest = attempts.read(self.folder)[-1:]
        return any(a.job == self.job and a.end in _FAILED_ENDS for a in newest)


def classify_job(
    folder: RunFolder, recorded: Recorded, submission: Submission, job: str, queue: Queue
) -> RunState:
    """Return the state of a run with a job; reads only its lock, its attempts and the canary's
    result."""
    if recorded.complete:
        return classify(folder, recorded)
    run = _JobRun(folder, recorded.status, submission, job)
    living = queue.jobs.get(job)
    if living is not None:
        return _living(run, living, queue)
    if recorded.damage:
        if queue.silent:
            return run.state("unknown", recorded.damage)
        return run.state("failed", recorded.damage, "code")
    if queue.silent:
        if run.failed_under_job():
            return run.recorded_failure()
        if run.locked():
            return run.state("running", f"on {run.status.host}")
        return run.state("unknown", f"Slurm does not answer: {queue.silent}")
    return _gone(run, queue.ended.get(job))


def _living(run: _JobRun, living: commands.Job, queue: Queue) -> RunState:
    """Return the state of a run whose job waits or runs."""
    submission = run.submission
    if living.state not in AT_WORK:
        first = next(iter(submission.elements()))
        if living.held and submission.canary and living.id != first:
            waits = f"waits for the first steps of {submission.tasks[0][0]}"
            vain = submission.canary_result() is not None or first not in queue.jobs
            return run.state("queued", f"{WAITS_IN_VAIN}: {waits}" if vain else waits)
        reason = living.reason.strip("()")
        return run.state("queued", f"{reason}: {_NEVER}" if _PERMANENT.match(reason) else reason)
    # In a job of several runs one may have ended while the others go on.
    if run.failed_under_job():
        return run.recorded_failure()
    return run.state("running", f"on {living.nodes}")


def _gone(run: _JobRun, ended: commands.Job | None) -> RunState:
    """Return the state of an unfinished run whose job has left the queue."""
    status = run.status
    if run.locked():
        return run.state("running", f"on {status.host}, outside of Slurm")
    owner = run.submission.user
    if ended is None and owner != commands.user():  # a cluster may hide others' jobs
        return run.state("unknown", f"the job of {owner} cannot be seen")
    newest = attempts.read(run.folder)[-1:]
    if not newest or newest[0].job != run.job:
        return _gone_unstarted(run, ended)
    if status.state == "finished":
        return run.state("pending", MISSING)
    if status.state == "failed":
        out = status.cause == "killed" and ended is not None and ended.state == "OUT_OF_MEMORY"
        return run.state("failed", status.message, "oom" if out else status.cause)
    if ended is None or ended.state == "COMPLETED":
        state: StateName = "cancelled" if status.state == "cancelled" else "lost"
        return run.state(state, status.message or "its job ended and recorded nothing")
    if ended.state in ("CANCELLED", "REVOKED"):
        return run.state("cancelled", _reported(ended))
    if ended.state == "PREEMPTED" or status.state == "cancelled":
        return run.state("lost", f"{_reported(ended)}, and not queued again")
    return run.state("failed", _reported(ended), _CAUSES.get(ended.state, "killed"))


def _gone_unstarted(run: _JobRun, ended: commands.Job | None) -> RunState:
    """Return the state of a run whose job has left the queue without starting the run."""
    submission = run.submission
    if run.status.updated > submission.created:  # it was started by hand since
        by_hand = classify_without_job(run.folder, run.status)
        return replace(by_hand, job=run.job, submission=submission)
    canary = submission.canary_result()
    if canary is not None and not canary["passed"]:
        why = f"held back: the first steps of {canary['run']} failed: {canary['message']}"
        return run.state("pending", why)
    if ended is not None and ended.state == "FAILED":
        said = last_lines(submission.log(run.job), 1) or [_reported(ended)]
        why = f"its job failed before the run could start: {said[0]}"
        return run.state("failed", why, "code")
    state: StateName = "cancelled" if ended and ended.state == "CANCELLED" else "lost"
    return run.state(
        state, _reported(ended) if ended else "its job left the queue without starting"
    )


def _reported(ended: commands.Job) -> str:
    """Return one sentence on how a job ended according to Slurm."""
    where = f" on {ended.nodes}" if ended.nodes and "None" not in ended.nodes else ""
    detail = f" {ended.reason}" if ended.reason and ended.reason != "None" else ""
    return f"Slurm says {ended.state}{detail}{where}"
