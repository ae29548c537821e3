"""The status of a sweep as data: for `--json` and for the tables."""

from __future__ import annotations

from collections import Counter
from typing import Any

from densevit.launch.run_state import STATE_NAMES, Observed, RunState
from densevit.sweep.plan import Plan
from densevit.sweep.plan_record import plan_record


def status_record(plan: Plan, observed: Observed) -> dict[str, Any]:
    """Return the status for `--json`: the plan's record with state, reason and progress of runs.

    `counts` has every state; `silent` says which queue of jobs did not answer, and why.
    """
    record = plan_record(plan, {run_id: state.status for run_id, state in observed.runs.items()})
    for run in record["runs"]:
        run |= _facts(observed.runs[run["id"]])
    causes = Counter(s.cause for s in observed.runs.values() if s.state == "failed")
    return {
        **record,
        "counts": count_states(observed),
        "causes": dict(causes),
        "silent": observed.silent,
        # Of all runs, summed over all their starts.
        "used_hours": sum(observed.runs[run.id].status.spent for run in plan.runs) / 3600,
    }


def _facts(state: RunState) -> dict[str, Any]:
    status = state.status
    return {
        "state": state.state, "why": state.why, "cause": state.cause,
        "job": state.job, "epoch": status.epoch, "epochs": status.epochs, "step": status.step,
        "steps": status.steps, "top1": status.top1, "hours": status.spent / 3600,
        "images_per_second": status.images_per_second, "seconds_left": status.seconds_left,
    }  # fmt: skip


def count_states(observed: Observed) -> dict[str, int]:
    """Return the number of runs in each state; every state is a key."""
    counts = Counter(state.state for state in observed.runs.values())
    return {name: counts[name] for name in STATE_NAMES}
