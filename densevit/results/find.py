"""A cell of a sweep by what a person types: its label, its id, its settings."""

from __future__ import annotations

import re
import shlex
from typing import Any

from pydantic import ValidationError

from densevit import yamlfile
from densevit.config import FIELDS, SCIENCE, RunConfig
from densevit.errors import UserError, nearest
from densevit.layers import explain
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.spec import matches

NAMED = 5  # cells that an error names


def find_cell(plan: Plan, text: str) -> Run:
    """The cell that is meant: by its label, its id, settings (`cl_mode=dense,temperature=0.1`), or
    the beginning of a label or an id.

    A label may be written without the dots between its words. Returns the cell's first run.
    Errors: `UserError` for what fits none, or several.
    """
    cells = plan.grid.cells
    words = _words(text)
    labels = {run.cell: _words(plan.label(run)) for run in cells}
    fitting = [run for run in cells if words and labels[run.cell] == words]
    fitting = fitting or [run for run in cells if text and run.cell.startswith(text)]
    if not fitting and "=" in text:
        where = _where(text)
        fitting = [run for run in cells if matches(where, run.config)]
    fitting = fitting or [run for run in cells if words and labels[run.cell][: len(words)] == words]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        told = ", ".join(f"{run.cell} ({plan.label(run)})" for run in fitting[:NAMED])
        more = f" and {len(fitting) - NAMED} more" if fitting[NAMED:] else ""
        raise UserError(f"{text}: fits several cells: {told}{more}")
    if text and any(run.id.startswith(text) for run in plan.runs):
        raise UserError(f"{text}: is a run; two runs are compared without the sweep's file")
    names = [name for run in cells for name in (plan.label(run), run.cell)]
    raise UserError(f"{text}: no cell of {plan.name}; {nearest(text, names)}")


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s·,]+", text) if word]


def _where(text: str) -> dict[str, Any]:
    """Settings as typed. Errors: `UserError` for a name or a value that is none."""
    where = {}
    for part in re.split(r",\s*(?=\w+=)", text):
        name, _, given = part.partition("=")
        if name not in FIELDS or name == "seed":
            why = "seeds are replicates of a cell" if name == "seed" else "unknown setting"
            raise UserError(f"{text}: {name}: {why}; {nearest(name, SCIENCE)}")
        value = yamlfile.parse(f"value: {given}", shlex.quote(part)).get("value")
        if FIELDS[name].annotation in (str, str | None):
            value = given
        try:
            RunConfig(**{name: value})
        except ValidationError as error:
            raise UserError(f"{text}: {explain(error.errors()[0], FIELDS)}") from None
        where[name] = value
    return where
