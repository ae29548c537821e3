"""Explain a run: its state, starts, difference from the baseline, files and next command."""

from __future__ import annotations

import time
from collections import Counter

from densevit.launch.launchers import observe
from densevit.launch.run_state import RunState
from densevit.launch.slurm import attempts
from densevit.sweep.baseline import differences
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.select_runs import select_one
from densevit.sweep.texts import resources_text, typed
from densevit.utils.console import duration


def explain(plan: Plan, text: str) -> list[str]:
    """Return the lines that explain the run whose id begins with `text`."""
    run = select_one(plan, text)
    state = observe(plan).runs[run.id]
    cause = f" ({state.cause})" if state.cause else ""
    why = f": {state.why}" if state.why else ""
    return [
        f"{run.id}: {plan.label(run)}, seed {run.seed} (cell {run.cell})",
        f"state     {state.state}{cause}{why}",
        *_progress(state),
        *_job(state),
        *_starts(plan, run),
        f"baseline  {differences(plan).get(run.cell, 'the sweep names none')}",
        f"files     {plan.run_folder(run).path}",
        f"log       {state.log_file(plan.run_folder(run))}",
        f"next      {_next(plan, run, state)}",
    ]


def _progress(state: RunState) -> list[str]:
    status = state.status
    if not status.steps:
        return []
    line = f"epoch {status.epoch} of {status.epochs}, step {status.step} of {status.steps}"
    if status.top1 is not None:
        line += f", val top-1 {status.top1:.1f} %"
    if status.spent:
        line += f", {duration(status.spent)} so far"
    if state.state == "running" and status.seconds_left:
        line += f", {duration(status.seconds_left)} left"
    return [f"progress  {line}"]


def _job(state: RunState) -> list[str]:
    submission = state.submission
    if submission is None:
        return []
    resources = resources_text(submission.resources)
    when = time.strftime("%F %T", time.localtime(submission.created))
    code = submission.code or "live: what the working tree holds when the run starts"
    return [f"job       {state.job}, submitted {when} ({resources})", f"code      {code}"]


def _starts(plan: Plan, run: Run) -> list[str]:
    starts = attempts.read(plan.run_folder(run))
    if not starts:
        return []
    ends = Counter(attempt.end or "still running" for attempt in starts)
    lines = [f"starts    {len(starts)}: {', '.join(f'{n} {end}' for end, n in ends.items())}"]
    for attempt in starts[-5:]:
        when = time.strftime("%F %T", time.localtime(attempt.started))
        end = attempt.end or "still running"
        last = f" to {attempt.last_step}" if attempt.end else ""
        lines.append(f"          {when} {attempt.job} on {attempt.node}: "
                     f"step {attempt.first_step}{last}, {end}")  # fmt: skip
    return lines


def _next(plan: Plan, run: Run, state: RunState) -> str:
    more = {"oom": ["--set", "resources.mem=..."], "timeout": ["--set", "resources.hours=..."]}
    retry = typed(plan, "retry", run.id, *more.get(state.cause, []))
    return {
        "finished": typed(plan, "report"),
        "running": typed(plan, "logs", run.id, "--follow"),
        "queued": typed(plan, "status", "--watch"),
        "unknown": f"{typed(plan, 'status')}, until its state can be known again",
        "failed": f"{typed(plan, 'logs', run.id)}, then {retry}",
    }.get(state.state, typed(plan, ""))
