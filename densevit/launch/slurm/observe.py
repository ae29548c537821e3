"""The state of a plan's runs that have Slurm jobs, from their directories and from Slurm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from densevit.launch.run_state import (
    STARTABLE,
    Observed,
    Recorded,
    RunState,
    classify,
    read_recorded,
    unless_damaged,
)
from densevit.launch.slurm import commands, submissions
from densevit.launch.slurm.groups import groups
from densevit.launch.slurm.profile import Profile
from densevit.launch.slurm.state import AT_WORK, Queue, ask, classify_job
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError


def observe(plan: Plan, recorded: Mapping[str, Recorded]) -> Observed:
    """Return the state of the runs that have a job and lack results, with at most one call each of
    squeue and sacct; Slurm is not called if there is no such run.

    A submission whose record is damaged may have a job of any run: none is started meanwhile.
    """
    readable, damage = submissions.read_readable(plan.outputs)
    newest = submissions.newest_jobs(readable)
    # A run with the status `failed` or `cancelled` may be back in the queue.
    runs = [run for run in plan.runs if run.id in newest and not recorded[run.id].complete]
    queue = ask(newest[run.id] for run in runs) if runs else Queue({}, {})

    def state(run: Run) -> RunState:
        submission, job = newest[run.id]
        # A job that has just ended may have written its status meanwhile.
        now = recorded[run.id] if job in queue.jobs else read_recorded(plan, run)
        folder = plan.run_folder(run)
        return unless_damaged(lambda: classify_job(folder, now, submission, job, queue))

    states = {run.id: state(run) for run in runs}
    if damage:
        states = {run.id: _unless_submitted(plan, run, states, recorded) for run in plan.runs}
    silent = [f"Slurm does not answer: {queue.silent}"] if queue.silent else []
    return Observed(states, "; ".join([*silent, *damage]))


def _unless_submitted(
    plan: Plan, run: Run, states: Mapping[str, RunState], recorded: Mapping[str, Recorded]
) -> RunState:
    """Return a run's state, `unknown` if the run could be started: it may have a job."""
    without_job = unless_damaged(lambda: classify(plan.run_folder(run), recorded[run.id]))
    state = states.get(run.id, without_job)
    if state.state not in STARTABLE:
        return state
    return replace(state, state="unknown", why="a submission cannot be read, and may have its job")


def queued_jobs(plan: Plan) -> dict[str, str]:
    """Map run ids to jobs, for the sweep's runs that Slurm has in its queue.

    Errors: `UserError` if Slurm does not answer.
    """
    ids = {run.id for run in plan.runs}
    newest = {
        run: (submission, job)
        for run, (submission, job) in submissions.newest_jobs(
            submissions.read_all(plan.outputs)
        ).items()
        if submission.sweep == plan.name or run in ids
    }
    if not newest:
        return {}
    try:
        queue = commands.queue({submission.user for submission, _ in newest.values()})
    except commands.NoAnswer as silent:
        raise UserError(f"cancel: Slurm does not answer: {silent}; nothing was cancelled") from None
    return {
        run: job
        for run, (submission, job) in newest.items()
        if job in queue and queue[job].active and submission.owns(job, queue[job].name)
    }


def changed_jobs(plan: Plan, profile: Profile) -> dict[str, str]:
    """Map the plan's jobs that wait with other resources than the plan has now to what changed:
    `hours 24 -> 48`. Errors: `NoAnswer` if Slurm does not answer."""
    wanted = {
        run.id: group.resources
        for group in groups(plan.runs, profile)
        for task in group.tasks
        for run in task
    }
    newest = submissions.newest_jobs(submissions.read_all(plan.outputs))
    found: dict[str, tuple[submissions.Submission, str]] = {}
    for run, (submission, job) in newest.items():
        if run in wanted and submission.user == commands.user():
            change = _change(submission.resources, wanted[run])
            found |= {job: (submission, change)} if change else {}
    queue = commands.queue([commands.user()]) if found else {}
    return {
        job: change
        for job, (submission, change) in found.items()
        if job in queue and queue[job].active and queue[job].state not in AT_WORK
        and submission.owns(job, queue[job].name)
    }  # fmt: skip


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    names = [n for n in {**before, **after} if before.get(n) != after.get(n)]
    shown = [f"{n} {before.get(n, 'default')} -> {after.get(n, 'default')}" for n in names]
    return ", ".join(shown)


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs. Errors: `UserError` if Slurm refuses."""
    try:
        commands.cancel(jobs)
    except commands.Refused as refused:
        raise UserError(f"cancel: {refused}") from None
