"""Taking runs out of the queue, or out of the hands of a launcher that stays, after asking."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from densevit.errors import UserError, nearest
from densevit.rundir import run_folder
from densevit.sweep.launch.slurm import cluster, records
from densevit.sweep.launch.staying import launched
from densevit.sweep.plan import Plan
from densevit.sweep.show import say, typed


def cancel_sweep(plan: Plan, given: Sequence[str], yes: bool) -> int:
    """Cancel runs, all runs of the sweep's file if none is given; the exit code.

    Runs that the file no longer holds are cancelled when they are named, and only then.
    """
    mine = _jobs(plan)
    held = dict.fromkeys(run for run in _held(plan) if run not in mine)
    chosen = _chosen(plan, {**mine, **held}, given)
    if not chosen:
        say("nothing to cancel: no such run is running or queued")
        return 0
    asked = [run for run in chosen if run in held]
    chosen = [run for run in chosen if run in mine]
    jobs = sorted({mine[run] for run in chosen})
    beside = {run for run, job in mine.items() if job in jobs} - set(chosen)
    parts = [f"{len(asked)} runs that no job has"] if asked else []
    parts += [f"{len(chosen)} runs in {len(jobs)} jobs"] if jobs else []
    told = f"cancel {' and '.join(parts)}"
    if beside:
        told += f", and {len(beside)} runs that share their jobs ({', '.join(sorted(beside)[:5])})"
    if not yes and not _agreed(told):
        say("nothing was cancelled")
        return 0
    for run in asked:  # before the word on those that wait: their launcher may come to them now
        run_folder(plan.outputs, run).stop_file.touch()
    try:
        if jobs:
            cluster.cancel(jobs)
    except cluster.Refused as refused:
        raise UserError(f"cancel: {refused}") from None
    for run in (*asked, *chosen, *beside):
        folder = run_folder(plan.outputs, run)
        # One that runs says so itself, with a checkpoint.
        if folder.path.exists() and not folder.locked() and folder.status().state != "finished":
            message = f"cancelled by {cluster.user()}"
            folder.write_status("cancelled", **folder.progress(), message=message)
    what = [f"{len(asked)} runs"] if asked else []
    what += [f"{len(jobs)} jobs"] if jobs else []
    say(f"cancelled {' and '.join(what)}; to start their runs again: {typed(plan, '')}")
    return 0


def _held(plan: Plan) -> list[str]:
    """The runs that a launcher without jobs works on, or will."""
    waiting = launched(plan.folder)
    found = []
    for run in plan.runs:
        folder = plan.run_folder(run)
        if folder.locked() or (
            waiting and folder.word().state == "pending" and folder.path.exists()
        ):
            found.append(run.id)
    return found


def _jobs(plan: Plan) -> dict[str, str]:
    """Run id to its job, of the sweep's runs that Slurm has."""
    submissions = records.read_all(plan.outputs)
    ids = {run.id for run in plan.runs}
    newest = {
        run: (submission, job)
        for run, (submission, job) in records.newest_jobs(submissions).items()
        if submission.sweep == plan.name or run in ids
    }
    if not newest:
        return {}
    try:
        queue = cluster.queue({submission.user for submission, _ in newest.values()})
    except cluster.NoAnswer as silent:
        raise UserError(f"cancel: Slurm does not answer: {silent}; nothing was cancelled") from None
    return {
        run: job
        for run, (submission, job) in newest.items()
        if job in queue and queue[job].active and submission.owns(job, queue[job].name)
    }


def _chosen(plan: Plan, mine: dict[str, str], given: Sequence[str]) -> list[str]:
    planned = [run.id for run in plan.runs]
    if not given:
        return [run for run in planned if run in mine]
    chosen = []
    for text in given:
        fitting = [run for run in {*planned, *mine} if run.startswith(text)]
        fitting += [run.id for run in plan.runs if run.cell.startswith(text)]
        cells = {run.cell for run in plan.runs if run.id in fitting}
        if not text or len(cells) > 1 or len(set(fitting) - set(planned)) > 1:
            raise UserError(f"{text!r}: fits several runs: {', '.join(sorted(set(fitting))[:5])}")
        if not fitting:
            raise UserError(f"{text}: no run of {plan.name}; {nearest(text, {*planned, *mine})}")
        chosen += [run for run in fitting if run in mine and run not in chosen]
    return chosen


def _agreed(told: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError(f"cancel: would {told}; say --yes where nobody can be asked")
    return input(f"{told}? [y/N] ").strip().lower() in ("y", "yes")
