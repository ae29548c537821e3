"""A plan as data: for programs, and for what shows a sweep without its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densevit.rundir import Status
from densevit.sweep.baseline import differences
from densevit.sweep.grid import cell_values
from densevit.sweep.plan import Plan


def plan_record(plan: Plan, statuses: Mapping[str, Status]) -> dict[str, Any]:
    """`{"name", "description", "axes", "runs": [{"id", "cell", "seed", "label", ...}]}`.

    A run's `axes` are its values on those that apply to it, `differs` is what it differs in from
    its baseline, empty where the sweep names none.
    """
    told = differences(plan)
    cells = {
        run.cell: {
            "label": plan.label(run),
            "axes": {k: v for k, v in cell_values(run.config, plan.axes).items() if v is not None},
            "differs": told.get(run.cell, ""),
        }
        for run in plan.grid.cells
    }
    runs = [
        {
            "id": run.id,
            "cell": run.cell,
            "seed": run.seed,
            **cells[run.cell],
            "config": dict(vars(run.config)),
            "resources": run.resources,
            "state": statuses[run.id].state,
        }
        for run in plan.runs
    ]
    described = {"name": plan.name, "description": plan.spec.description, "axes": plan.axes}
    return {**described, "runs": runs}
