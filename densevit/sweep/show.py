"""Plans and states as a person reads them: tables for a terminal, records for programs."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from densevit.rundir import outputs_root
from densevit.sweep import failures
from densevit.sweep.grid import Run, cell_values, count, value_word
from densevit.sweep.launch.slurm.submit import Group
from densevit.sweep.plan import Plan
from densevit.sweep.record import plan_record
from densevit.sweep.spec import read_spec
from densevit.sweep.state import WORDS, Observed, Standing, observe

LISTED = 60  # runs or cells, up to which each has a line of its own
COUNTED = 100_000  # combinations, above which a plan tells numbers only
SHOWN = 20  # of those that run, in a larger sweep
STYLES = {"failed": "red", "lost": "red", "running": "bold", "unknown": "yellow"}


def say(text: str) -> None:
    """Print a line as it is."""
    console_for_tables().print(text, highlight=False, soft_wrap=True)


def console_for_tables() -> Console:
    """A console that does not squeeze tables to 80 columns when it writes to a file or pipe."""
    # No markup: names and descriptions are the user's and may hold brackets.
    return Console(markup=False, width=None if sys.stdout.isatty() else 200)


def typed(plan: Plan, command: str, *words: str) -> str:
    """A `densevit-sweep` command about the plan, to be pasted into a shell."""
    told = ["densevit-sweep", *([command] if command else []), str(plan.spec.file), *words]
    if plan.outputs != outputs_root(None):
        told += ["--outputs", str(plan.outputs)]
    return shlex.join(told)


def print_plan(plan: Plan) -> None:
    """The cells of a sweep, how many runs they make, and what was left out."""
    console = console_for_tables()
    if plan.spec.description:
        console.print(plan.spec.description.strip(), highlight=False)
    by_cell: dict[str, list[Run]] = {}
    for run in plan.runs:
        by_cell.setdefault(run.cell, []).append(run)
    if len(by_cell) <= LISTED:
        console.print(_cells_table(plan, by_cell))
    else:
        for axis in plan.axes:
            values = Counter(value_word(cell_values(r.config, (axis,))[axis])
                             for r in plan.grid.cells)  # fmt: skip
            told = ", ".join(f"{value} ({n})" for value, n in list(values.items())[:SHOWN])
            more = ", ..." if len(values) > SHOWN else ""
            say(f"{axis}: {told}{more}")
    merged = f", {plan.grid.merged} combinations merged" if plan.grid.merged else ""
    say(f"{plan.name}: {len(by_cell)} cells x {len(plan.spec.seeds)} seeds = "
        f"{len(plan.runs)} runs{merged}")  # fmt: skip
    for rule, excluded in plan.grid.excluded:
        say(f"excluded: {excluded} cells, {rule.where}: {rule.because}")


def _cells_table(plan: Plan, by_cell: dict[str, list[Run]]) -> Table:
    table = _axes_table(plan, "cell", "seeds", "finished")
    statuses = plan.statuses()
    for cell, runs in by_cell.items():
        finished = sum(statuses[run.id].state == "finished" for run in runs)
        seeds = " ".join(str(run.seed) for run in runs)
        table.add_row(cell, *_axis_words(plan, runs[0]), seeds, str(finished))
    return table


def print_dry_run(plan: Plan, work: Any, groups: Sequence[Group] = ()) -> None:
    """What would be started, what is there already, and what Slurm would be asked for."""
    for word, runs in (
        ("finished", work.done), ("running or queued", work.active), ("unknown", work.unknown),
        ("to start", work.to_run),
    ):  # fmt: skip
        say(f"{len(runs):6} {word}")
    for group in groups:
        wanted = ", ".join(f"{k} {v}" for k, v in group.resources.items()) or "no resources named"
        runs = sum(map(len, group.tasks))
        say(f"       {runs} runs in {len(group.tasks)} jobs ({wanted})")
    for run in work.to_run[:LISTED]:
        say(f"  {run.id}  {plan.label(run)}, seed {run.seed}")
    if work.to_run[LISTED:]:
        say(f"  and {len(work.to_run) - LISTED} more")
    say("nothing was started")


def print_status(plan: Plan, observed: Observed) -> None:
    """How many runs are in each state, how far they are, what they cost, and why some failed."""
    console = console_for_tables()
    say(summary(plan, observed))
    if observed.silent:
        say(f"Slurm does not answer: {observed.silent}")
    if len(plan.runs) > SHOWN:
        _print_axes(console, plan, observed)
    listed = list(plan.runs)
    if len(listed) > LISTED:
        listed = [run for run in listed if observed.runs[run.id].state == "running"][:SHOWN]
    if listed:
        console.print(_runs_table(plan, listed, observed))
    _print_waiting(observed)
    _print_failures(plan, observed)
    beside = _told_cost(plan, observed)
    if beside:
        say(beside)


def _runs_table(plan: Plan, runs: Iterable[Run], observed: Observed) -> Table:
    table = _axes_table(plan, "run", "seed", "state", "epoch", "images/s", "left", "val top-1",
                        "job")  # fmt: skip
    for run in runs:
        standing = observed.runs[run.id]
        status = standing.status
        going = standing.state == "running"
        table.add_row(
            run.id, *_axis_words(plan, run), str(run.seed), standing.state,
            f"{status.epoch}/{status.epochs}" if status.epochs else "",
            f"{status.images_per_second:,.0f}" if going and status.images_per_second else "",
            duration(status.seconds_left) if going and status.seconds_left else "",
            f"{status.top1:.1f}" if status.top1 is not None else "",
            standing.job,
            style=STYLES.get(standing.state),
        )  # fmt: skip
    return table


def _print_axes(console: Console, plan: Plan, observed: Observed) -> None:
    """States by the values of each axis."""
    words = [word for word in WORDS if count_words(observed)[word]]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("axis", "value"):
        table.add_column(name, overflow="fold")
    for name in (*words, "trained"):
        table.add_column(name, justify="right")
    for axis in plan.axes:
        by_value: dict[str, list[Run]] = {}
        for run in plan.runs:
            by_value.setdefault(value_word(cell_values(run.config, (axis,))[axis]), []).append(run)
        for value, runs in list(by_value.items())[:SHOWN]:
            counted = Counter(observed.runs[run.id].state for run in runs)
            numbers = (str(counted[word]) for word in words)
            table.add_row(axis, value, *numbers, f"{_share(runs, observed):.0%}")
        if len(by_value) > SHOWN:
            table.add_row(axis, f"and {len(by_value) - SHOWN} more")
    console.print(table)


def _print_waiting(observed: Observed) -> None:
    """Why runs wait, are unknown or were not started."""
    for word in ("queued", "unknown", "lost", "pending", "cancelled", "stopped"):
        reasons = Counter(
            s.why for s in observed.runs.values() if s.state == word and s.why and s.why != "None"
        )
        for why, number in reasons.most_common(5):
            say(f"{number} {word}: {why}")


def _print_failures(plan: Plan, observed: Observed) -> None:
    groups = failures.grouped(observed.runs)
    if not groups:
        return
    console = console_for_tables()
    total = sum(len(group.runs) for group in groups)
    for group in groups[:SHOWN]:
        shown = ", ".join(group.runs[:3]) + (", ..." if len(group.runs) > 3 else "")
        told = f"{len(group.runs)} of {total} failed ({group.cause}): {group.message} ({shown})"
        console.print(told, style="red", highlight=False, soft_wrap=True)
    say(f"look: {typed(plan, 'logs', '--failed')}    again: {typed(plan, 'retry', '--failed')}")


def _told_cost(plan: Plan, observed: Observed) -> str:
    """What the runs have cost so far, beside what they were estimated to; nothing before either."""
    statuses = {run: standing.status for run, standing in observed.runs.items()}
    seconds = sum(status.spent for status in statuses.values())
    if not seconds:
        return ""
    from densevit.sweep.estimate import load_estimate, used

    estimated = load_estimate(plan)
    if estimated is None:
        return f"used: {seconds / 3600:,.2f} run-hours"
    low, central, high = estimated.total
    spent = used(plan, statuses, estimated)
    return (
        f"used: {spent:,.2f} {estimated.unit}; estimated for all runs: {central:,.2f} "
        f"({low:,.2f} to {high:,.2f})"
    )


def used_hours(plan: Plan, observed: Observed) -> float:
    """Hours that the runs were worked on, all starts together."""
    return sum(observed.runs[run.id].status.spent for run in plan.runs) / 3600


def status_record(plan: Plan, observed: Observed) -> dict[str, Any]:
    """The status for programs: the plan's record, with a state, a reason and numbers for each run.

    `counts` names every state; `silent` is why Slurm could not be asked.
    """
    record = plan_record(plan, {run: standing.status for run, standing in observed.runs.items()})
    for run in record["runs"]:
        standing = observed.runs[run["id"]]
        run |= _facts(standing)
    causes = Counter(s.cause for s in observed.runs.values() if s.state == "failed")
    return {
        **record,
        "counts": count_words(observed),
        "causes": dict(causes),
        "silent": observed.silent,
        "used_hours": used_hours(plan, observed),
    }


def _facts(standing: Standing) -> dict[str, Any]:
    status = standing.status
    return {
        "state": standing.state, "why": standing.why, "cause": standing.cause,
        "job": standing.job, "epoch": status.epoch, "epochs": status.epochs, "step": status.step,
        "steps": status.steps, "top1": status.top1, "hours": status.spent / 3600,
        "images_per_second": status.images_per_second, "seconds_left": status.seconds_left,
    }  # fmt: skip


def watch_status(plan: Plan, every: int, *, as_json: bool) -> None:
    """Show the status again and again, until no run is running or waiting."""
    tell = teller(plan)
    while True:
        observed = observe(plan)
        if as_json:
            print(json.dumps(status_record(plan, observed)), flush=True)
        else:
            tell(observed)
        states = {standing.state for standing in observed.runs.values()}
        if states.isdisjoint({"running", "queued", "unknown"}):
            return
        time.sleep(every)


def teller(plan: Plan) -> Callable[[Observed], None]:
    """A function to call at each look: it shows the whole status on a terminal, in place of the one
    before, and elsewhere a line when something has changed.
    """
    told = ""

    def tell(observed: Observed) -> None:
        nonlocal told
        if sys.stdout.isatty():
            console_for_tables().clear()
            print_status(plan, observed)
        elif told != (told := summary(plan, observed)):
            print(f"{time.strftime('%F %T')} {told}", flush=True)

    return tell


def summary(plan: Plan, observed: Observed) -> str:
    """How many runs are in each state, and how much of the training is done."""
    told = ", ".join(f"{n} {word}" for word, n in count_words(observed).items() if n)
    return f"{plan.name}: {told}; {_share(plan.runs, observed):.0%} of the training"


def count_words(observed: Observed) -> dict[str, int]:
    """How many runs are in each state; every state is named."""
    counted = Counter(standing.state for standing in observed.runs.values())
    return {word: counted[word] for word in WORDS}


def duration(seconds: float) -> str:
    """Seconds as `2 d 3 h`, `3 h 05 min` or `4:05 min`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d} min"


def print_count(file: Path) -> bool:
    """Whether a sweep is too large to list its cells, which then are only counted and told."""
    spec = read_spec(file)
    axes = [len(values) for values in spec.grid.values()]
    axes += [len(next(iter(group.values()), ())) for group in spec.zip]
    if math.prod(axes) <= COUNTED:
        return False
    size = count(spec)
    say(f"{spec.name}: {size.cells:,} cells x {len(spec.seeds)} seeds = {size.runs:,} runs of "
        f"{size.combinations:,} combinations ({size.merged:,} merged)")  # fmt: skip
    for rule, excluded in size.excluded:
        say(f"excluded: {excluded:,} cells, {rule.where}: {rule.because}")
    return True


def _share(runs: Sequence[Run], observed: Observed) -> float:
    """How much of the training of some runs is done, each run counting the same."""
    done = 0.0
    for run in runs:
        standing = observed.runs[run.id]
        status = standing.status
        done += 1 if standing.state == "finished" else status.step / max(status.steps, 1)
    return done / max(len(runs), 1)


def _axes_table(plan: Plan, first: str, *last: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (first, *plan.axes, *last):
        table.add_column(name, no_wrap=name == first, overflow="fold")
    return table


def _axis_words(plan: Plan, run: Run) -> list[str]:
    return [value_word(value) for value in cell_values(run.config, plan.axes).values()]
