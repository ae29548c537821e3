"""The logs of runs: the end of each, and on demand what is added to them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from densevit.rundir import last_lines
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.select import select
from densevit.sweep.show import say
from densevit.sweep.state import Observed, Standing, observe

LOOK_SECONDS = 1.0  # between two looks at the logs
STATE_SECONDS = 20.0  # between two looks at where the runs stand, for which Slurm is asked


# Run id to the log that is shown of it, and how much of that.
Places = dict[str, tuple[Path, int]]


def print_logs(plan: Plan, given: Sequence[str], failed: bool, follow: bool, lines: int) -> None:
    """Print the last lines of runs' logs; with `follow` go on until none of them runs or waits."""
    runs, observed = select(plan, given), observe(plan)
    if failed:
        runs += [r for r in plan.runs if observed.runs[r.id].state == "failed" and r not in runs]
        if not runs:
            say("no run has failed")
    places: Places = {}
    for run in runs:
        standing = observed.runs[run.id]
        say(f"== {run.id}  {standing.state}  {plan.label(run)}, seed {run.seed}")
        file = log_file(plan, run, standing)
        say(f"== {file}")
        places[run.id] = (file, file.stat().st_size if file.exists() else 0)
        for line in last_lines(file, lines):
            print(line)
    if follow:
        _follow(plan, runs, observed, places)


def log_file(plan: Plan, run: Run, standing: Standing) -> Path:
    """The run's own log, or what Slurm kept of its job if that has nothing to say."""
    own = plan.run_folder(run).log_file
    if own.exists() and own.stat().st_size:
        return own
    if standing.submission is not None and standing.job:
        kept = standing.submission.jobs_folder / f"{standing.job}_0_log.out"
        return kept if kept.exists() else own
    return own


def _follow(plan: Plan, runs: list[Run], observed: Observed, places: Places) -> None:
    shown, looked = "", time.monotonic()
    while True:
        for run in runs:
            file = log_file(plan, run, observed.runs[run.id])
            before, offset = places[run.id]
            # From Slurm's log of the job to the run's own, once that begins.
            text, offset = _added(file, offset if file == before else 0)
            places[run.id] = (file, offset)
            if text and len(runs) > 1 and shown != run.id:
                say(f"== {run.id}")
            if text:
                shown = run.id
                print(text, end="", flush=True)
        states = {observed.runs[run.id].state for run in runs}
        if states.isdisjoint({"running", "queued", "unknown"}):
            return
        time.sleep(LOOK_SECONDS)
        # A run that has said its last word is told at once.
        said = any(plan.run_folder(r).status().state in ("finished", "failed") for r in runs)
        if said or time.monotonic() - looked > STATE_SECONDS:
            observed, looked = observe(plan), time.monotonic()


def _added(file: Path, offset: int) -> tuple[str, int]:
    """What was written after an offset, and where it ends now; a file that was cut begins anew."""
    if not file.exists():
        return "", 0
    with file.open("rb") as log:
        if log.seek(0, 2) < offset:
            offset = 0
        log.seek(offset)
        data = log.read()
    return data.decode(errors="replace"), offset + len(data)
