"""Select runs by an id or its beginning, as typed by a user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError, nearest


def select_ids(plan: Plan, given: Sequence[str], others: Iterable[str] = ()) -> list[str]:
    """Return the ids of runs that begin as given, of the plan's runs and of `others`; the id of a
    cell selects all its seeds.

    Errors: `UserError` for a text that matches no run, or runs of several cells.
    """
    cell_of = {run: run for run in others} | {run.id: run.cell for run in plan.runs}
    selected: dict[str, None] = {}
    for text in given:
        if not text:
            raise UserError("an empty id fits every run; leave it out to mean all")
        fitting = [
            run for run, cell in cell_of.items() if run.startswith(text) or cell.startswith(text)
        ]
        if not fitting:
            raise UserError(f"{text}: no run of {plan.name}; {nearest(text, cell_of)}")
        if len({cell_of[run] for run in fitting}) > 1:
            raise UserError(f"{text}: fits several runs: {', '.join(fitting[:5])}")
        selected |= dict.fromkeys(fitting)
    return list(selected)


def select(plan: Plan, given: Sequence[str]) -> list[Run]:
    """Return the runs that the texts select. Errors: see `select_ids`."""
    by_id = {run.id: run for run in plan.runs}
    return [by_id[run_id] for run_id in select_ids(plan, given)]


def select_one(plan: Plan, text: str) -> Run:
    """Return the single run that `text` selects. Errors: see `select_ids`."""
    found = [run for run in plan.runs if run.id.startswith(text)] or select(plan, [text])
    if len(found) > 1:
        raise UserError(f"{text}: fits several runs: {', '.join(r.id for r in found[:5])}")
    return found[0]
