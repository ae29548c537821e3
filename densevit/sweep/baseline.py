"""Find the baseline cell of each cell of a sweep, and describe how the two differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from densevit.config.loss_modes import inapplicable
from densevit.config.run_config import RunConfig, is_execution
from densevit.sweep.cells import cell_values, value_text
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.spec import matches

_Values = dict[str, str]  # axis to value, for the axes that apply to a cell


def baselines(plan: Plan) -> dict[str, str]:
    """Return the cell id of the baseline of each cell, by cell id.

    A cell's baseline matches `baseline:` and has the same values on all other axes that apply to
    both. A cell that has none or several has no entry, nor has a baseline cell.
    """
    return {cell: base.cell for cell, base in _bases(plan).items() if base is not None}


def differences(plan: Plan) -> dict[str, str]:
    """Return by cell id how each cell differs from its baseline; empty without `baseline:`."""
    if plan.spec.baseline is None:
        return {}
    found, cells = _bases(plan), plan.grid.cells
    # A cell without a unique match is compared with the first baseline.
    first = next(run for run in cells if run.cell not in found)
    return {
        run.cell: difference(run.config, (found[run.cell] or first).config)
        if run.cell in found
        else "it is a baseline cell"
        for run in cells
    }


def difference(config: RunConfig, base: RunConfig) -> str:
    """Describe how a configuration differs from another one."""
    ours, theirs = vars(config), vars(base)
    differing = [
        name
        for name, value in ours.items()
        if value != theirs[name] and name != "seed" and not is_execution(name)
    ]
    unused, unused_there = inapplicable(config), inapplicable(base)
    parts = [
        f"{name}: {value_text(None if name in unused else ours[name])} "
        f"(there {value_text(None if name in unused_there else theirs[name])})"
        for name in differing
        if name not in unused or name not in unused_there
    ]
    return ", ".join(parts) or "no setting differs"


def _bases(plan: Plan) -> dict[str, Run | None]:
    """Return the baseline of each cell that is not a baseline; None if it is not unique."""
    baseline = plan.spec.baseline
    if baseline is None:
        return {}
    axes = tuple(axis for axis in plan.axes if axis not in baseline)
    index = _Index(axes)
    others = []
    for run in plan.grid.cells:
        if matches(baseline, run.config):
            index.add(run)
        else:
            others.append(run)
    return {run.cell: index.only_alike(run) for run in others}


class _Index:
    """The baselines, indexed by their values. Cells with the same applicable axes share a table, so
    that ten thousand cells are not each compared with thousands of baselines."""

    def __init__(self, axes: tuple[str, ...]) -> None:
        self.axes = axes
        self._by_pattern: dict[frozenset[str], list[tuple[_Values, Run]]] = defaultdict(list)
        self._tables: dict[tuple[frozenset[str], frozenset[str]], Mapping[Any, list[Run]]] = {}

    def add(self, run: Run) -> None:
        values = _values(run, self.axes)
        self._by_pattern[frozenset(values)].append((values, run))

    def only_alike(self, run: Run) -> Run | None:
        ours = _values(run, self.axes)
        found: list[Run] = []
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
