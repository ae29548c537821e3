"""Cancel runs that are jobs or that a foreground launcher executes, after confirmation."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from densevit.launch.foreground import launched
from densevit.launch.launchers import job_queues
from densevit.launch.slurm.commands import user
from densevit.runs.directory import RunFolder, run_folder
from densevit.sweep.plan import Plan
from densevit.sweep.select_runs import select_ids
from densevit.sweep.texts import typed
from densevit.utils.console import count, say, warn
from densevit.utils.errors import UserError


def cancel_sweep(plan: Plan, given: Sequence[str], yes: bool) -> int:
    """Cancel runs, all runs in the sweep file if none is given; return the exit code.

    Runs that are no longer in the file are cancelled only if they are named.
    """
    queues = job_queues()
    jobs = {
        run: (number, job)
        for number, queue in enumerate(queues)
        for run, job in queue.find(plan).items()
    }
    in_foreground = [run for run in _in_foreground(plan) if run not in jobs]
    selected = [run.id for run in plan.runs]
    if given:
        selected = select_ids(plan, given, others=jobs)
    without_job = [run for run in selected if run in in_foreground]
    with_job = [run for run in selected if run in jobs]
    if not (without_job or with_job):
        say("nothing to cancel: no such run is running or queued")
        return 0
    cancelled = sorted({jobs[run] for run in with_job})
    sharing = sorted({run for run, job in jobs.items() if job in cancelled} - set(with_job))
    parts = [f"{count(len(without_job), 'run')} without a job"] if without_job else []
    if cancelled:
        parts.append(f"{count(len(with_job), 'run')} in {count(len(cancelled), 'job')}")
    question = f"cancel {' and '.join(parts)}"
    if sharing:
        others = f"{count(len(sharing), 'other run')} in the same jobs"
        question += f", and {others} ({', '.join(sharing[:5])})"
    if not yes and not _confirmed(question):
        say("nothing was cancelled")
        return 0
    for run in without_job:  # before their status is written: their launcher may start them now
        run_folder(plan.outputs, run).stop_file.touch()
    for number, queue in enumerate(queues):
        mine = [job for index, job in cancelled if index == number]
        if mine:
            queue.cancel(mine)
    for run in (*without_job, *with_job, *sharing):
        try:
            _record_cancelled(run_folder(plan.outputs, run))
        except UserError as error:  # the others are cancelled all the same
            warn(f"warning: {error}")
    parts = [count(len(without_job), "run")] if without_job else []
    parts += [count(len(cancelled), "job")] if cancelled else []
    say(f"cancelled {' and '.join(parts)}; to start their runs again: {typed(plan, '')}")
    return 0


def _record_cancelled(folder: RunFolder) -> None:
    # A running one writes its status itself, with a checkpoint.
    if folder.path.exists() and not folder.locked() and folder.status().state != "finished":
        message = f"cancelled by {user()}"
        folder.write_status("cancelled", **folder.progress(), message=message)


def _in_foreground(plan: Plan) -> list[str]:
    """Return the runs that a foreground launcher works on or will start."""
    waiting = launched(plan.folder)
    found = []
    for run in plan.runs:
        folder = plan.run_folder(run)
        if folder.locked() or (
            waiting and folder.readable_status().state == "pending" and folder.path.exists()
        ):
            found.append(run.id)
    return found


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError(f"cancel: would {question}; without a terminal, confirm with --yes")
    return input(f"{question}? [y/N] ").strip().lower() in ("y", "yes")
