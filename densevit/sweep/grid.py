"""A sweep as runs: a pure function of the sweep file, the same on every machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from densevit.config import RunConfig, applies, identity
from densevit.errors import UserError
from densevit.layers import Layer, build
from densevit.sweep.spec import Exclusion, Settings, SweepSpec, matches


@dataclass(frozen=True, eq=False)
class Run:
    """One planned run: a cell of the grid with one seed. Equal only to itself; compare ids."""

    id: str
    cell: str
    config: RunConfig
    resources: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.config.seed


@dataclass(frozen=True)
class Grid:
    """The runs, seed-major (a half-done sweep is still a fair table), cells in the file's order.

    `axes` are the fields in which the cells differ; `merged` counts combinations that are the
    same cell as another one; `excluded` tells how many cells each rule left out.
    """

    runs: tuple[Run, ...]
    axes: tuple[str, ...]
    merged: int
    excluded: tuple[tuple[Exclusion, int], ...]

    @property
    def cells(self) -> tuple[Run, ...]:
        """The first run of each cell."""
        return tuple({run.cell: run for run in reversed(self.runs)}.values())[::-1]


def expand(spec: SweepSpec) -> Grid:
    """The runs of a sweep.

    Errors: `UserError` for a value that a field does not take, when nothing is left, and for a
    baseline that is no cell.
    """
    kept: dict[str, RunConfig] = {}
    merged = 0
    left_out: list[set[str]] = [set() for _ in spec.exclude]
    for source, settings in _combinations(spec):
        config = build([*spec.layers, Layer(f"{spec.file}: {source}", settings)])
        cell = identity(config).cell
        rule = _excluded_by(spec, config) if source != "include" else None
        if rule is not None:
            left_out[rule].add(cell)
            continue
        merged += cell in kept
        kept.setdefault(cell, config)
    if not kept:
        raise UserError(f"{spec.file}: exclude: every cell is left out; nothing remains to run")
    _check_baseline(spec, kept)
    runs = tuple(
        _run(spec, cell, config, seed) for seed in spec.seeds for cell, config in kept.items()
    )
    excluded = tuple(zip(spec.exclude, map(len, left_out), strict=True))
    return Grid(runs, _axes(spec, list(kept.values())), merged, excluded)


def cell_values(config: RunConfig, axes: tuple[str, ...]) -> dict[str, Any]:
    """A cell's value on each axis; None where the axis does not apply to it."""
    return {name: getattr(config, name) if applies(name, config) else None for name in axes}


def cell_label(config: RunConfig, axes: tuple[str, ...]) -> str:
    """A cell in words: its values on the axes that apply to it."""
    values = [v for v in cell_values(config, axes).values() if v is not None]
    return " · ".join(value_word(value) for value in values) or config.cl_mode


def value_word(value: Any) -> str:
    """A field's value as a person writes it in YAML; an en dash for None (does not apply)."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _combinations(spec: SweepSpec) -> Iterator[tuple[str, Settings]]:
    """Every combination of the grid and the zips, then the included cells."""
    choices: list[list[Settings]] = [
        [{name: value} for value in values] for name, values in spec.grid.items()
    ]
    choices += [
        [dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)]
        for group in spec.zip
    ]
    # A file with includes alone means just those cells and not the bare base as well.
    if choices or not spec.include:
        for parts in itertools.product(*choices):
            yield "grid" if choices else "base", {k: v for part in parts for k, v in part.items()}
    for extra in spec.include:
        yield "include", extra


def _excluded_by(spec: SweepSpec, config: RunConfig) -> int | None:
    for number, rule in enumerate(spec.exclude):
        if matches(rule.where, config):
            return number
    return None


def _check_baseline(spec: SweepSpec, kept: dict[str, RunConfig]) -> None:
    if spec.baseline is None:
        return
    if not any(matches(spec.baseline, config) for config in kept.values()):
        raise UserError(f"{spec.file}: baseline: {spec.baseline} is no cell of this sweep")


def _run(spec: SweepSpec, cell: str, config: RunConfig, seed: int) -> Run:
    seeded = config if seed == config.seed else config.model_copy(update={"seed": seed})
    resources = spec.resources.model_dump(exclude={"when"}, exclude_none=True)
    for rule in spec.resources.when:
        if matches(rule.where, config):
            resources.update(rule.model_dump(exclude={"where"}, exclude_none=True))
    return Run(identity(seeded).run, cell, seeded, resources)


def _axes(spec: SweepSpec, configs: list[RunConfig]) -> tuple[str, ...]:
    """The fields of the file in which cells to which they apply differ."""
    varied = []
    for name in spec.axes():
        values = [getattr(c, name) for c in configs if applies(name, c)]
        if any(value != values[0] for value in values):
            varied.append(name)
    return tuple(varied)
