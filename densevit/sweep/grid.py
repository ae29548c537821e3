"""Expand a sweep into runs: a pure function of the sweep file, the same on every machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from densevit.config.identity import identity
from densevit.config.loss_modes import applies
from densevit.config.resolve import Layer, build, source_of
from densevit.config.run_config import RunConfig
from densevit.runs.initial_file import with_initial_digest
from densevit.sweep.spec import Exclusion, Settings, SweepSpec, matches
from densevit.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class Run:
    """One planned run: a cell of the grid with one seed. Equal only to itself; compare ids.

    `nearer` names the resources that an exception (`when`) or a command sets for this run.
    """

    id: str
    cell: str
    config: RunConfig
    resources: dict[str, Any]
    nearer: frozenset[str] = frozenset()

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def devices(self) -> float:
        """Return how many GPUs the run occupies: `gpus` · `nodes` / `pack` of its resources, each 1
        by default. A run without a GPU (`device: cpu`, or `gpus: 0`) occupies one device."""
        request = self.resources
        if self.config.device == "cpu" or request.get("gpus") == 0:
            return 1.0
        return float(request.get("gpus", 1) * request.get("nodes", 1) / request.get("pack", 1))


@dataclass(frozen=True)
class Grid:
    """The runs, seed-major (a half-done sweep is still a fair table), cells in file order.

    `axes` are the fields in which the cells differ; `merged` counts combinations that are the same
    cell as an earlier one; `excluded` counts the cells that each rule left out.
    """

    runs: tuple[Run, ...]
    axes: tuple[str, ...]
    merged: int
    excluded: tuple[tuple[Exclusion, int], ...]

    @property
    def cells(self) -> tuple[Run, ...]:
        """Return the first run of each cell."""
        return tuple({run.cell: run for run in reversed(self.runs)}.values())[::-1]


def expand(spec: SweepSpec) -> Grid:
    """Return the runs of a sweep.

    Errors: `UserError` for a value that a field does not accept, if every cell is excluded, and for
    a baseline that is not a cell.
    """
    cells: dict[str, RunConfig] = {}
    excluded: list[set[str]] = [set() for _ in spec.exclude]
    merged = 0
    for section, settings in _combinations(spec):
        layers = [*spec.layers, Layer(f"{spec.file}: {section}", settings)]
        config = build(layers)
        if config.init_checkpoint:
            config = with_initial_digest(config, source_of(layers, "init_checkpoint"))
        cell = identity(config).cell
        # No rule excludes an included cell.
        rule = None if section == "include" else _excluded_by(spec, config)
        if rule is not None:
            excluded[rule].add(cell)
        elif cell in cells:
            merged += 1
        else:
            cells[cell] = config
    if not cells:
        raise UserError(f"{spec.file}: exclude: the rules leave out every cell")
    if spec.baseline and not any(matches(spec.baseline, config) for config in cells.values()):
        raise UserError(f"{spec.file}: baseline: {spec.baseline} matches no cell of this sweep")
    counts = tuple(zip(spec.exclude, map(len, excluded), strict=True))
    return Grid(tuple(_runs(spec, cells)), _axes(spec, list(cells.values())), merged, counts)


def _combinations(spec: SweepSpec) -> Iterator[tuple[str, Settings]]:
    """Yield the section of the file and the settings of each combination, included cells last."""
    axes: list[list[Settings]] = [[{name: v} for v in vs] for name, vs in spec.grid.items()]
    for group in spec.zip:
        rows = zip(*group.values(), strict=True)
        axes.append([dict(zip(group, row, strict=True)) for row in rows])
    # A file with only includes means only those cells, without the bare base.
    for parts in itertools.product(*axes) if axes or not spec.include else ():
        yield "grid" if axes else "base", {k: v for part in parts for k, v in part.items()}
    for extra in spec.include:
        yield "include", extra


def _excluded_by(spec: SweepSpec, config: RunConfig) -> int | None:
    """Return the index of the first rule that excludes a configuration."""
    rules = enumerate(spec.exclude)
    return next((number for number, rule in rules if matches(rule.where, config)), None)


def _runs(spec: SweepSpec, cells: Mapping[str, RunConfig]) -> Iterator[Run]:
    """Yield the runs of cells, seed-major."""
    resources = {cell: _resources(spec, config) for cell, config in cells.items()}
    for seed in spec.seeds:
        for cell, config in cells.items():
            seeded = config.model_copy(update={"seed": seed})
            request, nearer = resources[cell]
            yield Run(identity(seeded).run, cell, seeded, dict(request), nearer)


def _resources(spec: SweepSpec, config: RunConfig) -> tuple[dict[str, Any], frozenset[str]]:
    """Return a run's resources, and the names of those that an exception or a command sets."""
    resources = spec.resources.model_dump(exclude={"when"}, exclude_none=True)
    exceptions: dict[str, Any] = {}
    for rule in spec.resources.when:
        if matches(rule.where, config):
            exceptions |= rule.model_dump(exclude={"where"}, exclude_none=True)
    exceptions |= spec.request.model_dump(exclude_none=True)
    return resources | exceptions, frozenset(exceptions)


def _axes(spec: SweepSpec, configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """Return the fields of the file in which the cells that they apply to differ."""
    varied = []
    for name in spec.axes():
        values = (getattr(config, name) for config in configs if applies(name, config))
        first = next(values, None)
        if any(value != first for value in values):
            varied.append(name)
    return tuple(varied)
