"""Print a plan: its cells, its runs, and what a launch would start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from densevit.launch.decide import RunActions
from densevit.monitor.tables import LISTED, SHOWN, axes_table
from densevit.sweep.cells import cell_values, value_text
from densevit.sweep.continuation import start_lines
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.console import console_for_tables, count, say


def print_plan(plan: Plan) -> None:
    """Print the cells of a sweep, the number of its runs, and what its rules exclude."""
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
            values = Counter(value_text(cell_values(r.config, (axis,))[axis])
                             for r in plan.grid.cells)  # fmt: skip
            text = ", ".join(f"{value} ({n})" for value, n in list(values.items())[:SHOWN])
            more = ", ..." if len(values) > SHOWN else ""
            say(f"{axis}: {text}{more}")
    if "learning_rate" not in plan.axes:  # the value of `auto` too
        rates = dict.fromkeys(run.config.learning_rate for run in plan.grid.cells)
        say(f"learning_rate: {', '.join(value_text(rate) for rate in rates)}")
    for line in start_lines(plan):
        say(line)
    merged = f", {count(plan.grid.merged, 'combination')} merged" if plan.grid.merged else ""
    say(f"{plan.name}: {count(len(by_cell), 'cell')} x {count(len(plan.spec.seeds), 'seed')} = "
        f"{count(len(plan.runs), 'run')}{merged}")  # fmt: skip
    for rule, excluded in plan.grid.excluded:
        say(f"excluded: {count(excluded, 'cell')}, {rule.where}: {rule.because}")


def _cells_table(plan: Plan, by_cell: dict[str, list[Run]]) -> Table:
    table = axes_table(plan, "cell", "seeds", "finished")
    statuses = plan.statuses()
    for cell, runs in by_cell.items():
        finished = sum(statuses[run.id].state == "finished" for run in runs)
        seeds = " ".join(str(run.seed) for run in runs)
        table.add_row(cell, *plan.axis_texts(runs[0]), seeds, str(finished))
    return table


def print_dry_run(plan: Plan, actions: RunActions, jobs: Sequence[str]) -> None:
    """Print the runs by state, the runs that would start, and the jobs that would be submitted."""
    for state, runs in (
        ("finished", actions.done), ("running or queued", actions.active),
        ("unknown", actions.unknown), ("to start", actions.to_run),
    ):  # fmt: skip
        say(f"{len(runs):6} {state}")
    for line in jobs:
        say(f"       {line}")
    for run in actions.to_run[:LISTED]:
        say(f"  {run.id}  {plan.label(run)}, seed {run.seed}")
    if actions.to_run[LISTED:]:
        say(f"  and {len(actions.to_run) - LISTED} more")
    say("nothing was started")
