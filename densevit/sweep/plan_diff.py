"""Compare two plans of a sweep: new, reused and orphaned cells and runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from densevit.config.run_config import SCIENCE
from densevit.sweep.cells import cell_label
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.console import count

MOST_CELLS = 40  # listed one by one, among the new cells and among the orphaned ones
MOST_WORDS = 6  # ids or seeds per line


@dataclass(frozen=True)
class Part:
    """A part of a plan: some cells, by id with all their runs, and some runs.

    A run may be in another part than its cell: a reused cell may have new seeds.
    """

    plan: Plan
    cells: dict[str, tuple[Run, ...]]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class PlanDiff:
    """The difference of two plans: `new` and `reused` belong to the new one, `orphaned` to the old.

    `axes` are the fields that distinguish the cells of both plans.
    """

    new: Part
    reused: Part
    orphaned: Part
    axes: tuple[str, ...]


def diff(old: Plan, new: Plan) -> PlanDiff:
    """Compare two plans by the ids of their cells and runs; reads no run directory."""
    old_cells, old_runs = _ids(old)
    new_cells, new_runs = _ids(new)
    return PlanDiff(
        new=_part(new, new_cells - old_cells, new_runs - old_runs),
        reused=_part(new, new_cells & old_cells, new_runs & old_runs),
        orphaned=_part(old, old_cells - new_cells, old_runs - new_runs),
        axes=_axes(old, new),
    )


def diff_lines(found: PlanDiff) -> list[str]:
    """Format a difference as lines, with the number of finished runs on disk."""
    new, reused, orphaned = found.new, found.reused, found.orphaned
    lines = [
        f"+{count(len(new.cells), 'cell')} ({count(len(new.runs), 'run')}), "
        f"{len(reused.cells)} reused ({count(len(reused.runs), 'run')}), "
        f"{len(orphaned.cells)} orphaned ({count(len(orphaned.runs), 'run')})"
    ]
    lines += _part_lines("+", new, found.axes)
    lines += _part_lines("-", orphaned, found.axes, name_open=True)
    if orphaned.runs:
        file = shlex.quote(str(new.plan.spec.file))
        lines.append(
            "orphaned runs stay on disk and go on if they are running; "
            f"densevit-sweep cancel {file} RUN... stops them"
        )
    return lines


def diff_record(found: PlanDiff) -> dict[str, Any]:
    """Return a difference as data: `new`, `reused`, `orphaned`, each with `cells` and `runs`."""
    return {
        name: {
            "cells": [
                {
                    "cell": cell,
                    "label": cell_label(runs[0].config, found.axes),
                    "runs": [run.id for run in runs],
                    "finished": len(runs) - len(_open(part.plan, runs)),
                }
                for cell, runs in part.cells.items()
            ],
            "runs": [run.id for run in part.runs],
        }
        for name, part in (
            ("new", found.new), ("reused", found.reused), ("orphaned", found.orphaned),
        )
    }  # fmt: skip


def _ids(plan: Plan) -> tuple[set[str], set[str]]:
    return {run.cell for run in plan.runs}, {run.id for run in plan.runs}


def _part(plan: Plan, cells: set[str], runs: set[str]) -> Part:
    by_cell: dict[str, list[Run]] = {}
    for run in plan.runs:
        if run.cell in cells:
            by_cell.setdefault(run.cell, []).append(run)
    members = {cell: tuple(runs_of_cell) for cell, runs_of_cell in by_cell.items()}
    return Part(plan, members, tuple(run for run in plan.runs if run.id in runs))


def _axes(old: Plan, new: Plan) -> tuple[str, ...]:
    """Return the axes of both plans and the `fixed` fields that differ between the plans."""
    one, other = old.runs[0].config, new.runs[0].config
    moved = [name for name in SCIENCE if getattr(one, name) != getattr(other, name)]
    return tuple(dict.fromkeys([*new.axes, *old.axes, *moved]))


def _part_lines(
    sign: str, part: Part, axes: tuple[str, ...], *, name_open: bool = False
) -> list[str]:
    """Return one line per cell, and one for the runs whose cells are in another part.

    `name_open` lists the runs that are not finished.
    """
    lines = []
    for cell, runs in list(part.cells.items())[:MOST_CELLS]:
        text = _progress_text(part.plan, runs, name_open)
        lines.append(f"{sign} {cell}  {cell_label(runs[0].config, axes)}: {text}")
    rest = list(part.cells.values())[MOST_CELLS:]
    if rest:
        runs_left = count(sum(map(len, rest)), "run")
        lines.append(f"{sign} and {len(rest)} more ({runs_left})")
    further = [run for run in part.runs if run.cell not in part.cells]
    if further:
        seeds = dict.fromkeys(str(run.seed) for run in further)
        cells = count(len({run.cell for run in further}), "reused cell")
        noun = "seed" if len(seeds) == 1 else "seeds"
        text = _progress_text(part.plan, further, name_open)
        lines.append(f"{sign} {noun} {_shortened(list(seeds))} of {cells}: {text}")
    return lines


def _progress_text(plan: Plan, runs: Sequence[Run], name_open: bool) -> str:
    """Return how many of some runs are finished, and the ids of the others."""
    unfinished = _open(plan, runs)
    text = f"{len(runs) - len(unfinished)} of {count(len(runs), 'run')} finished"
    return f"{text}, not {_shortened(unfinished)}" if unfinished and name_open else text


def _open(plan: Plan, runs: Sequence[Run]) -> list[str]:
    """Return the ids of the runs that are not finished."""
    return [run.id for run in runs if plan.run_folder(run).readable_status().state != "finished"]


def _shortened(names: Sequence[str]) -> str:
    rest = len(names) - MOST_WORDS
    return ", ".join(names[:MOST_WORDS]) + (f" and {rest} more" if rest > 0 else "")
