"""Why a run is where it is: its state, its starts, what it differs in, its files, what to type."""

from __future__ import annotations

import time
from collections import Counter

from densevit.sweep.baseline import differences
from densevit.sweep.grid import Run
from densevit.sweep.launch.slurm import attempts
from densevit.sweep.logs import log_file
from densevit.sweep.plan import Plan
from densevit.sweep.select import select_one
from densevit.sweep.show import duration, typed
from densevit.sweep.state import Standing, observe


def explain(plan: Plan, text: str) -> list[str]:
    """The lines that explain the run whose id begins with `text`."""
    run = select_one(plan, text)
    standing = observe(plan).runs[run.id]
    lines = [f"{run.id}: {plan.label(run)}, seed {run.seed} (cell {run.cell})"]
    why = f": {standing.why}" if standing.why else ""
    cause = f" ({standing.cause})" if standing.cause else ""
    lines.append(f"state     {standing.state}{cause}{why}")
    lines += _progress(standing)
    lines += _job(standing)
    lines += _starts(plan, run)
    lines.append(f"baseline  {differences(plan).get(run.cell, 'the sweep names none')}")
    lines.append(f"files     {plan.run_folder(run).path}")
    lines.append(f"log       {log_file(plan, run, standing)}")
    lines.append(f"next      {_next(plan, run, standing)}")
    return lines


def _progress(standing: Standing) -> list[str]:
    status = standing.status
    if not status.steps:
        return []
    told = f"epoch {status.epoch} of {status.epochs}, step {status.step} of {status.steps}"
    if status.top1 is not None:
        told += f", val top-1 {status.top1:.1f} %"
    if status.spent:
        told += f", {duration(status.spent)} so far"
    if standing.state == "running" and status.seconds_left:
        told += f", {duration(status.seconds_left)} left"
    return [f"progress  {told}"]


def _job(standing: Standing) -> list[str]:
    submission = standing.submission
    if submission is None:
        return []
    wanted = ", ".join(f"{k} {v}" for k, v in submission.resources.items()) or "no resources named"
    when = time.strftime("%F %T", time.localtime(submission.created))
    lines = [f"job       {standing.job} of {when} ({wanted})"]
    lines.append(f"code      {submission.code or 'live: what the working tree holds when it runs'}")
    return lines


def _starts(plan: Plan, run: Run) -> list[str]:
    held = attempts.read(plan.run_folder(run))
    if not held:
        return []
    counted = Counter(attempt.end or "going on" for attempt in held)
    told = ", ".join(f"{n} {end}" for end, n in counted.items())
    lines = [f"starts    {len(held)}: {told}"]
    for attempt in held[-5:]:
        when = time.strftime("%F %T", time.localtime(attempt.started))
        end = attempt.end or "going on"
        last = f" to {attempt.last_step}" if attempt.end else ""
        lines.append(f"          {when} {attempt.job} on {attempt.node}: "
                     f"step {attempt.first_step}{last}, {end}")  # fmt: skip
    return lines


def _next(plan: Plan, run: Run, standing: Standing) -> str:
    more = {"oom": ["--set", "resources.mem=..."], "timeout": ["--set", "resources.hours=..."]}
    again = typed(plan, "retry", run.id, *more.get(standing.cause, []))
    return {
        "finished": typed(plan, "report"),
        "running": typed(plan, "logs", run.id, "--follow"),
        "queued": typed(plan, "status", "--watch"),
        "unknown": f"{typed(plan, 'status')}, when Slurm answers again",
        "failed": f"{typed(plan, 'logs', run.id)}, then {again}",
    }.get(standing.state, typed(plan, ""))
