"""Print the status of a sweep, once or repeatedly."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from densevit.launch.launchers import observe
from densevit.launch.run_state import STATE_NAMES, Observed
from densevit.monitor import failures
from densevit.monitor.status_record import count_states, status_record
from densevit.monitor.tables import LISTED, SHOWN, STYLES, axes_table
from densevit.sweep.cells import cell_values, value_text
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.texts import typed
from densevit.utils.console import console_for_tables, duration, say


def print_status(plan: Plan, observed: Observed) -> None:
    """Print the number of runs in each state, their progress and cost, and reasons of failures."""
    console = console_for_tables()
    say(summary(plan, observed))
    if observed.silent:
        say(observed.silent)
    if len(plan.runs) > SHOWN:
        _print_axes(console, plan, observed)
    listed = list(plan.runs)
    if len(listed) > LISTED:
        listed = [run for run in listed if observed.runs[run.id].state == "running"][:SHOWN]
    if listed:
        console.print(_runs_table(plan, listed, observed))
    _print_waiting(observed)
    _print_failures(plan, observed)
    cost = _cost_line(plan, observed)
    if cost:
        say(cost)


def _runs_table(plan: Plan, runs: Iterable[Run], observed: Observed) -> Table:
    table = axes_table(plan, "run", "seed", "state", "epoch", "images/s", "left", "val top-1",
                        "job")  # fmt: skip
    for run in runs:
        state = observed.runs[run.id]
        status, running = state.status, state.state == "running"
        table.add_row(
            run.id, *plan.axis_texts(run), str(run.seed), state.state,
            f"{status.epoch}/{status.epochs}" if status.epochs else "",
            f"{status.images_per_second:,.0f}" if running and status.images_per_second else "",
            duration(status.seconds_left) if running and status.seconds_left else "",
            f"{status.top1:.1f}" if status.top1 is not None else "",
            state.job,
            style=STYLES.get(state.state),
        )  # fmt: skip
    return table


def _print_axes(console: Console, plan: Plan, observed: Observed) -> None:
    """Print the states by the values of each axis."""
    states = [state for state in STATE_NAMES if count_states(observed)[state]]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("axis", "value"):
        table.add_column(name, overflow="fold")
    for name in (*states, "trained"):
        table.add_column(name, justify="right")
    for axis in plan.axes:
        by_value: dict[str, list[Run]] = {}
        for run in plan.runs:
            by_value.setdefault(value_text(cell_values(run.config, (axis,))[axis]), []).append(run)
        for value, runs in list(by_value.items())[:SHOWN]:
            counts = Counter(observed.runs[run.id].state for run in runs)
            cells = (str(counts[state]) for state in states)
            table.add_row(axis, value, *cells, f"{_share(runs, observed):.0%}")
        if len(by_value) > SHOWN:
            table.add_row(axis, f"and {len(by_value) - SHOWN} more")
    console.print(table)


def _print_waiting(observed: Observed) -> None:
    """Print why runs are queued, unknown, lost, pending, cancelled or stopped."""
    for state in ("queued", "unknown", "lost", "pending", "cancelled", "stopped"):
        reasons = Counter(
            s.why for s in observed.runs.values() if s.state == state and s.why and s.why != "None"
        )
        for why, count in reasons.most_common(5):
            say(f"{count} {state}: {why}")


def _print_failures(plan: Plan, observed: Observed) -> None:
    groups = failures.grouped(observed.runs)
    if not groups:
        return
    console = console_for_tables()
    total = sum(len(group.runs) for group in groups)
    for group in groups[:SHOWN]:
        shown = ", ".join(group.runs[:3]) + (", ..." if len(group.runs) > 3 else "")
        line = f"{len(group.runs)} of {total} failed ({group.cause}): {group.message} ({shown})"
        console.print(line, style="red", highlight=False, soft_wrap=True)
    say(f"logs: {typed(plan, 'logs', '--failed')}    retry: {typed(plan, 'retry', '--failed')}")


def _cost_line(plan: Plan, observed: Observed) -> str:
    """Return the cost of the runs so far and the estimate; an empty string before any cost."""
    statuses = {run_id: state.status for run_id, state in observed.runs.items()}
    seconds = sum(status.spent for status in statuses.values())
    if not seconds:
        return ""
    from densevit.cost.estimate import load_estimate, used

    estimated = load_estimate(plan)
    if estimated is None:
        return f"used: {seconds / 3600:,.2f} run-hours"
    low, central, high = estimated.total
    spent = used(plan, statuses, estimated)
    return (
        f"used: {spent:,.2f} {estimated.unit}; estimated for all runs: {central:,.2f} "
        f"({low:,.2f} to {high:,.2f})"
    )


def watch_status(plan: Plan, every: int, *, as_json: bool) -> None:
    """Print the status repeatedly until no run is running or queued."""
    show = status_printer(plan)
    while True:
        observed = observe(plan)
        if as_json:
            say(json.dumps(status_record(plan, observed)))
        else:
            show(observed)
        states = {state.state for state in observed.runs.values()}
        if states.isdisjoint({"running", "queued", "unknown"}):
            return
        time.sleep(every)


def status_printer(plan: Plan) -> Callable[[Observed], None]:
    """Return a function that prints the status: on a terminal all of it, in place of the last one,
    elsewhere one line if something has changed."""
    last = ""

    def show(observed: Observed) -> None:
        nonlocal last
        if sys.stdout.isatty():
            console_for_tables().clear()
            print_status(plan, observed)
        elif last != (last := summary(plan, observed)):
            say(f"{time.strftime('%F %T')} {last}")

    return show


def summary(plan: Plan, observed: Observed) -> str:
    """Return a line with the number of runs in each state and the share of the training done."""
    counts = ", ".join(f"{n} {state}" for state, n in count_states(observed).items() if n)
    return f"{plan.name}: {counts}; {_share(plan.runs, observed):.0%} of the training"


def _share(runs: Sequence[Run], observed: Observed) -> float:
    """Return the share of the training of some runs that is done; each run has equal weight."""
    done = 0.0
    for run in runs:
        state = observed.runs[run.id]
        steps = state.status.step / max(state.status.steps, 1)
        done += 1 if state.state == "finished" else steps
    return done / max(len(runs), 1)
