"""Which cell each cell of a sweep is compared with, and what it differs in from that one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from densevit.config import RunConfig, inapplicable, is_execution
from densevit.sweep.grid import Run, cell_values, value_word
from densevit.sweep.plan import Plan
from densevit.sweep.spec import matches

_Values = dict[str, str]  # axis to its value, of those that apply to a cell


def baselines(plan: Plan) -> dict[str, str]:
    """Cell id to the id of its baseline's cell.

    That is the cell that `baseline:` describes and that has the same values on all other axes that
    apply to both. A cell for which there is none, or more than one, has no entry; nor has a
    baseline itself.
    """
    return {cell: base.cell for cell, base in _bases(plan).items() if base is not None}


def differences(plan: Plan) -> dict[str, str]:
    """Cell id to words: what it differs in from its baseline. Empty if the sweep names none."""
    if plan.spec.baseline is None:
        return {}
    found, cells = _bases(plan), plan.grid.cells
    # Where no one cell is alike on the other axes, the first baseline has to do.
    first = next(run for run in cells if run.cell not in found)
    return {
        run.cell: difference(run.config, (found[run.cell] or first).config)
        if run.cell in found
        else "it is of the baseline"
        for run in cells
    }


def difference(config: RunConfig, base: RunConfig) -> str:
    """What a configuration differs in from another one, in words."""
    ours, theirs = vars(config), vars(base)
    differing = [
        name
        for name, value in ours.items()
        if value != theirs[name] and name != "seed" and not is_execution(name)
    ]
    unused, unused_there = inapplicable(config), inapplicable(base)
    told = [
        f"{name}: {value_word(None if name in unused else ours[name])} "
        f"(there {value_word(None if name in unused_there else theirs[name])})"
        for name in differing
        if name not in unused or name not in unused_there
    ]
    return ", ".join(told) or "no setting differs"


def _bases(plan: Plan) -> dict[str, Run | None]:
    """Of each cell that is no baseline: its baseline's cell, None if there is not exactly one."""
    wanted = plan.spec.baseline
    if wanted is None:
        return {}
    axes = tuple(axis for axis in plan.axes if axis not in wanted)
    index = _Index(axes)
    others = []
    for run in plan.grid.cells:
        if matches(wanted, run.config):
            index.add(run)
        else:
            others.append(run)
    return {run.cell: index.only_alike(run) for run in others}


class _Index:
    """The baselines by their values. Cells to which the same axes apply are looked up together, so
    that ten thousand cells are not each held against thousands of baselines."""

    def __init__(self, axes: tuple[str, ...]) -> None:
        self.axes = axes
        self._by_pattern: dict[frozenset[str], list[tuple[_Values, Run]]] = defaultdict(list)
        self._tables: dict[tuple[frozenset[str], frozenset[str]], Mapping[Any, list[Run]]] = {}

    def add(self, run: Run) -> None:
        values = _values(run, self.axes)
        self._by_pattern[frozenset(values)].append((values, run))

    def only_alike(self, run: Run) -> Run | None:
        ours, found = _values(run, self.axes), []
        for pattern in self._by_pattern:
            common = pattern & frozenset(ours)
            found += self._table(pattern, common).get(_key(ours, common), ())
        return found[0] if len(found) == 1 else None

    def _table(self, pattern: frozenset[str], common: frozenset[str]) -> Mapping[Any, list[Run]]:
        if (pattern, common) not in self._tables:
            table: dict[Any, list[Run]] = defaultdict(list)
            for values, run in self._by_pattern[pattern]:
                table[_key(values, common)].append(run)
            self._tables[pattern, common] = dict(table)
        return self._tables[pattern, common]


def _values(run: Run, axes: tuple[str, ...]) -> _Values:
    found = cell_values(run.config, axes)
    return {axis: repr(value) for axis, value in found.items() if value is not None}


def _key(values: _Values, axes: frozenset[str]) -> tuple[str, ...]:
    return tuple(values[axis] for axis in sorted(axes))
