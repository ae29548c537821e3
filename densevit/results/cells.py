"""The cells of a sweep as a table."""

from __future__ import annotations

import pandas as pd

from densevit.results.tables import as_given
from densevit.sweep.grid import cell_values
from densevit.sweep.plan import Plan


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
