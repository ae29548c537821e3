"""What a changed sweep file changes: which cells and runs are new, reused, and wanted no more."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from densevit.config import SCIENCE
from densevit.sweep.grid import Run, cell_label
from densevit.sweep.plan import Plan

MOST_CELLS = 40  # that are told one by one, of the new ones and of the orphaned ones
MOST_WORDS = 6  # ids or seeds in a line


@dataclass(frozen=True)
class Part:
    """Some of a plan's cells, by id and with all their runs, and some of its runs.

    A run may be in another part than its cell: a cell that is reused may have new seeds.
    """

    plan: Plan
    cells: dict[str, tuple[Run, ...]]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class PlanDiff:
    """`new` and `reused` are parts of the new plan, `orphaned` is what only the old one has.

    `axes` are the fields that tell the cells of both plans apart.
    """

    new: Part
    reused: Part
    orphaned: Part
    axes: tuple[str, ...]


def diff(old: Plan, new: Plan) -> PlanDiff:
    """Compare two plans by the ids of their cells and runs; looks at no run directory."""
    old_cells, old_runs = _ids(old)
    new_cells, new_runs = _ids(new)
    return PlanDiff(
        new=_part(new, new_cells - old_cells, new_runs - old_runs),
        reused=_part(new, new_cells & old_cells, new_runs & old_runs),
        orphaned=_part(old, old_cells - new_cells, old_runs - new_runs),
        axes=_axes(old, new),
    )


def diff_lines(found: PlanDiff) -> list[str]:
    """A difference in words, with how many of the runs are finished on the disk."""
    new, reused, orphaned = found.new, found.reused, found.orphaned
    lines = [
        f"+{_number(len(new.cells), 'cell')} ({_number(len(new.runs), 'run')}), "
        f"{len(reused.cells)} reused ({_number(len(reused.runs), 'run')}), "
        f"{len(orphaned.cells)} orphaned ({_number(len(orphaned.runs), 'run')})"
    ]
    lines += _part_lines("+", new, found.axes)
    lines += _part_lines("-", orphaned, found.axes, name_open=True)
    if orphaned.runs:
        file = shlex.quote(str(new.plan.spec.file))
        lines.append(
            "orphaned runs are kept, and never cancelled by themselves: "
            f"densevit-sweep cancel {file} RUN... does that"
        )
    return lines


def diff_record(found: PlanDiff) -> dict[str, Any]:
    """A difference for programs: `new`, `reused` and `orphaned`, each with `cells` and `runs`."""
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
    kept = {cell: tuple(members) for cell, members in by_cell.items()}
    return Part(plan, kept, tuple(run for run in plan.runs if run.id in runs))


def _axes(old: Plan, new: Plan) -> tuple[str, ...]:
    """The axes of both plans, and what is the same within each but not in both (under `fixed`)."""
    one, other = old.runs[0].config, new.runs[0].config
    moved = [name for name in SCIENCE if getattr(one, name) != getattr(other, name)]
    return tuple(dict.fromkeys([*new.axes, *old.axes, *moved]))


def _part_lines(
    sign: str, part: Part, axes: tuple[str, ...], *, name_open: bool = False
) -> list[str]:
    """A line a cell, and one for the runs whose cells are in another part.

    `name_open` names the runs that are not finished.
    """
    lines = []
    for cell, runs in list(part.cells.items())[:MOST_CELLS]:
        told = _told(part.plan, runs, name_open)
        lines.append(f"{sign} {cell}  {cell_label(runs[0].config, axes)}: {told}")
    rest = list(part.cells.values())[MOST_CELLS:]
    if rest:
        runs_left = _number(sum(map(len, rest)), "run")
        lines.append(f"{sign} and {len(rest)} more ({runs_left})")
    further = [run for run in part.runs if run.cell not in part.cells]
    if further:
        seeds = dict.fromkeys(str(run.seed) for run in further)
        cells = _number(len({run.cell for run in further}), "reused cell")
        word = "seed" if len(seeds) == 1 else "seeds"
        told = _told(part.plan, further, name_open)
        lines.append(f"{sign} {word} {_listed(list(seeds))} of {cells}: {told}")
    return lines


def _told(plan: Plan, runs: Sequence[Run], name_open: bool) -> str:
    """How many of some runs are finished, and which are not."""
    unfinished = _open(plan, runs)
    told = f"{len(runs) - len(unfinished)} of {_number(len(runs), 'run')} finished"
    return f"{told}, not {_listed(unfinished)}" if unfinished and name_open else told


def _open(plan: Plan, runs: Sequence[Run]) -> list[str]:
    """The ids of the runs that are not finished."""
    return [run.id for run in runs if plan.run_folder(run).status().state != "finished"]


def _listed(words: Sequence[str]) -> str:
    rest = len(words) - MOST_WORDS
    return ", ".join(words[:MOST_WORDS]) + (f" and {rest} more" if rest > 0 else "")


def _number(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
