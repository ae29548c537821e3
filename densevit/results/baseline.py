"""Which cell each cell of a sweep is compared with, and what its cells are."""

from __future__ import annotations

import pandas as pd

from densevit.results.tables import as_given
from densevit.sweep.grid import Run, cell_values
from densevit.sweep.plan import Plan
from densevit.sweep.spec import matches


def baselines(plan: Plan) -> dict[str, str]:
    """Cell id to the id of its baseline's cell.

    That is the cell that `baseline:` describes and that has the same values on all other axes that
    apply to both. A cell for which there is none, or more than one, has no entry; nor has a
    baseline itself.
    """
    wanted = plan.spec.baseline
    if wanted is None:
        return {}
    others = [cell for cell in plan.grid.cells if matches(wanted, cell.config)]
    axes = tuple(axis for axis in plan.axes if axis not in wanted)
    found = {}
    for cell in plan.grid.cells:
        alike = [other for other in others if _alike(cell, other, axes)]
        if len(alike) == 1 and cell not in others:
            found[cell.cell] = alike[0].cell
    return found


def cells_frame(plan: Plan) -> pd.DataFrame:
    """A row a cell in the plan's order: cell (id), label (words), and each axis' raw value, None
    where the axis does not apply."""
    rows = [
        {"cell": run.cell, "label": plan.label(run), **cell_values(run.config, plan.axes)}
        for run in plan.grid.cells
    ]
    frame = pd.DataFrame(rows)
    for axis in plan.axes:
        frame[axis] = as_given(row[axis] for row in rows)
    return frame


def _alike(cell: Run, other: Run, axes: tuple[str, ...]) -> bool:
    ours, theirs = cell_values(cell.config, axes), cell_values(other.config, axes)
    return all(
        ours[axis] == theirs[axis] for axis in axes if None not in (ours[axis], theirs[axis])
    )
