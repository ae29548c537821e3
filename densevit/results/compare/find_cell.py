"""Find a cell of a sweep by what a user types: its label, its id or its settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from densevit.config import yaml_file
from densevit.config.error_messages import explain
from densevit.config.run_config import FIELDS, SCIENCE, RunConfig
from densevit.sweep.axis_paths import absolute_where
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.spec import matches
from densevit.utils.errors import UserError, nearest

MOST_NAMED = 5  # cells that an error names


def find_cell(plan: Plan, text: str) -> Run:
    """Return the first run of the cell that `text` names.

    `text` is a label, an id, settings (`cl_mode=dense,temperature=0.1`), or the beginning of a
    label or an id. A label may omit the dots between its words.

    Errors: `UserError` if no cell fits, or several.
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
        names = ", ".join(f"{run.cell} ({plan.label(run)})" for run in fitting[:MOST_NAMED])
        more = f" and {len(fitting) - MOST_NAMED} more" if fitting[MOST_NAMED:] else ""
        raise UserError(f"{text}: fits several cells: {names}{more}")
    if text and any(run.id.startswith(text) for run in plan.runs):
        raise UserError(f"{text}: is a run; to compare two runs, leave out the sweep's file")
    known = [name for run in cells for name in (plan.label(run), run.cell)]
    raise UserError(f"{text}: no cell of {plan.name}; {nearest(text, known)}")


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s·,]+", text) if word]


def _where(text: str) -> dict[str, Any]:
    """Return settings as typed. Errors: `UserError` for an unknown name or an invalid value."""
    where = {}
    for part in re.split(r",\s*(?=\w+=)", text):
        name, _, given = part.partition("=")
        if name not in FIELDS or name == "seed":
            why = "seeds are replicates of a cell" if name == "seed" else "unknown setting"
            raise UserError(f"{text}: {name}: {why}; {nearest(name, SCIENCE)}")
        value = yaml_file.parse(f"value: {given}", shlex.quote(part)).get("value")
        if FIELDS[name].annotation in (str, str | None):
            value = given
        try:
            RunConfig.model_validate({name: value})
        except ValidationError as error:
            raise UserError(f"{text}: {explain(error.errors()[0], FIELDS)}") from None
        where[name] = value
    return absolute_where(where, Path.cwd())
