"""Runs by what a person types: an id or its beginning."""

from __future__ import annotations

from collections.abc import Sequence

from densevit.errors import UserError, nearest
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan


def select(plan: Plan, given: Sequence[str]) -> list[Run]:
    """The runs whose ids begin as given; the id of a cell means all its seeds.

    Errors: `UserError` for what fits no run, or several that are of different cells.
    """
    chosen: dict[str, Run] = {}
    for text in given:
        fitting = [run for run in plan.runs if run.id.startswith(text)]
        fitting += [run for run in plan.runs if run.cell.startswith(text)]
        if not text:
            raise UserError("an empty id fits every run; leave it out to mean all")
        if not fitting:
            names = [run.id for run in plan.runs]
            raise UserError(f"{text}: no run of {plan.name}; {nearest(text, names)}")
        if len({run.cell for run in fitting}) > 1:
            names = ", ".join(run.id for run in fitting[:5])
            raise UserError(f"{text}: fits several runs: {names}")
        chosen |= {run.id: run for run in fitting}
    return list(chosen.values())


def select_one(plan: Plan, text: str) -> Run:
    """The one run that is meant. Errors: as `select`."""
    found = [run for run in plan.runs if run.id.startswith(text)] or select(plan, [text])
    if len(found) > 1:
        raise UserError(f"{text}: fits several runs: {', '.join(r.id for r in found[:5])}")
    return found[0]
