"""Print the logs of runs: their last lines, and with `--follow` each new line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from densevit.launch.launchers import observe
from densevit.launch.run_state import Observed
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.select_runs import select
from densevit.utils.console import say
from densevit.utils.files import last_lines, without_colors

READ_SECONDS = 1.0  # between two reads of the logs
STATE_SECONDS = 20.0  # between two updates of the runs' states, each of which queries Slurm

# Run id to its log file, and the number of bytes printed so far.
Printed = dict[str, tuple[Path, int]]


def print_logs(plan: Plan, given: Sequence[str], failed: bool, follow: bool, lines: int) -> None:
    """Print the last lines of runs' logs; with `follow`, go on until no run runs or is queued."""
    runs, observed = select(plan, given), observe(plan)
    if failed:
        runs += [r for r in plan.runs if observed.runs[r.id].state == "failed" and r not in runs]
        if not runs:
            say("no run has failed")
    printed: Printed = {}
    for run in runs:
        state = observed.runs[run.id]
        say(f"== {run.id}  {state.state}  {plan.label(run)}, seed {run.seed}")
        file = state.log_file(plan.run_folder(run))
        say(f"== {file}")
        printed[run.id] = (file, file.stat().st_size if file.exists() else 0)
        for line in last_lines(file, lines):
            say(line)
    if follow:
        _follow(plan, runs, observed, printed)


def _follow(plan: Plan, runs: list[Run], observed: Observed, printed: Printed) -> None:
    last_run, observed_at = "", time.monotonic()
    while True:
        for run in runs:
            file = observed.runs[run.id].log_file(plan.run_folder(run))
            before, offset = printed[run.id]
            # The file changes from the job's Slurm log to the run's own log once that has begun.
            text, offset = _added(file, offset if file == before else 0)
            printed[run.id] = (file, offset)
            if text and len(runs) > 1 and last_run != run.id:
                say(f"== {run.id}")
            if text:
                last_run = run.id
                say(text, end="")
        states = {observed.runs[run.id].state for run in runs}
        if states.isdisjoint({"running", "queued", "unknown"}):
            return
        time.sleep(READ_SECONDS)
        # The end of a run shows at once, without waiting for STATE_SECONDS.
        ended = any(plan.run_folder(r).status().state in ("finished", "failed") for r in runs)
        if ended or time.monotonic() - observed_at > STATE_SECONDS:
            observed, observed_at = observe(plan), time.monotonic()


def _added(file: Path, offset: int) -> tuple[str, int]:
    """Return the text after an offset, and the new offset; read a truncated file from its start."""
    if not file.exists():
        return "", 0
    with file.open("rb") as log:
        if log.seek(0, 2) < offset:
            offset = 0
        log.seek(offset)
        data = log.read()
    # Each state of a progress bar is a line.
    text = without_colors(data.decode(errors="replace")).replace("\r\n", "\n")
    return text.replace("\r", "\n"), offset + len(data)
