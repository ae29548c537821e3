"""A plan as data: for programs, and for displays of a sweep without its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densevit.runs.status import Status
from densevit.sweep.baseline import differences
from densevit.sweep.cells import cell_values
from densevit.sweep.earlier_plans import dropped
from densevit.sweep.plan import Plan


def plan_record(plan: Plan, statuses: Mapping[str, Status]) -> dict[str, Any]:
    """Return `{"name", "description", "axes", "set", "dropped", "runs": [{"id", "cell", ...}]}`.

    `set` holds the settings of the command line, `dropped` the runs of earlier plans that are not
    in this one. A run's `axes` are its values on the axes that apply to it; `differs` describes its
    difference from its baseline, "" if the sweep has none.
    """
    differing = differences(plan)
    cells = {
        run.cell: {
            "label": plan.label(run),
            "axes": {k: v for k, v in cell_values(run.config, plan.axes).items() if v is not None},
            "differs": differing.get(run.cell, ""),
        }
        for run in plan.grid.cells
    }
    runs = [
        {
            "id": run.id,
            "cell": run.cell,
            "seed": run.seed,
            **cells[run.cell],
            "config": run.config.model_dump(),
            "resources": run.resources,
            "state": statuses[run.id].state,
        }
        for run in plan.runs
    ]
    described = {
        "name": plan.name,
        "description": plan.spec.description,
        "axes": plan.axes,
        "set": plan.spec.changes,
        "dropped": dropped(plan),
    }
    return {**described, "runs": runs}
