"""Decide which runs of a plan to start, wait for or leave alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from densevit.launch.run_state import STARTABLE, Observed
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.console import count


@dataclass(frozen=True)
class RunActions:
    """A plan's runs, grouped by what to do with them.

    `to_run`: to start; `done`: finished with all benchmarks; `active`: running or queued;
    `unknown`: left alone; `stopped`: ended by the sweep's early-stopping rule.
    """

    to_run: tuple[Run, ...]
    done: tuple[Run, ...]
    active: tuple[Run, ...]
    unknown: tuple[Run, ...]
    stopped: tuple[Run, ...] = ()


def decide(plan: Plan, observed: Observed, *, foreground: bool) -> RunActions:
    """Sort the runs by their state.

    Runs that failed, were cancelled, were lost or lack a benchmark are started again and resume
    from their checkpoint, and so are those that another sweep has stopped early. A launcher in the
    `foreground` also takes runs that another process is known to work on, and waits for them.
    """
    names = ("to_run", "done", "active", "unknown", "stopped")
    groups: dict[str, list[Run]] = {name: [] for name in names}
    for run in plan.runs:
        run_state = observed.runs[run.id]
        state, awaited = run_state.state, foreground and not run_state.job
        if state == "finished":
            groups["done"].append(run)
        elif state == "stopped" and _by_this_rule(plan, run):
            groups["stopped"].append(run)
        elif state in STARTABLE or (state == "running" and awaited):
            groups["to_run"].append(run)
        else:
            groups["unknown" if state == "unknown" else "active"].append(run)
    return RunActions(**{name: tuple(runs) for name, runs in groups.items()})


def _by_this_rule(plan: Plan, run: Run) -> bool:
    """Return whether the plan's current early-stopping rule has ended a run."""
    rule, record = plan.spec.early_stop, plan.run_folder(run).status_record()
    if rule is None or record is None:
        return False
    return record.get("rule") == rule.model_dump(exclude={"allow_biased"})


def counted(plan: Plan, actions: RunActions) -> str:
    """Return one line with the number of runs in each group."""
    text = f"{count(len(plan.runs), 'run')} in {count(len(plan.grid.cells), 'cell')}: "
    text += f"{len(actions.done)} finished before, "
    if actions.stopped:
        text += f"{len(actions.stopped)} stopped early, "
    if actions.active:
        text += f"{len(actions.active)} running or queued, "
    if actions.unknown:
        text += f"{len(actions.unknown)} unknown, "
    return text + f"{len(actions.to_run)} to run"
