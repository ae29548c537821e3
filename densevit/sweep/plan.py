"""A plan: the runs that a sweep file asks for, and the status of their run directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from densevit.config.loss_modes import applies
from densevit.config.model_names import PATCH_COUNTS, check_names
from densevit.config.resolve import source_of
from densevit.runs.directory import RunFolder, run_folder, sweep_folder
from densevit.runs.status import Status
from densevit.sweep.cells import cell_label, cell_values, short_texts, value_text
from densevit.sweep.grid import Grid, Run, expand
from densevit.sweep.read_spec import read_spec
from densevit.sweep.search import drawn
from densevit.sweep.spec import SweepSpec
from densevit.utils.errors import UserError, nearest


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep and its outputs folder."""

    spec: SweepSpec
    grid: Grid
    outputs: Path

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.grid.runs

    @property
    def axes(self) -> tuple[str, ...]:
        return self.grid.axes

    @property
    def folder(self) -> Path:
        """outputs/sweeps/<name>"""
        return sweep_folder(self.outputs, self.name)

    def run_folder(self, run: Run) -> RunFolder:
        return run_folder(self.outputs, run.id)

    def label(self, run: Run) -> str:
        """Return the label of the run's cell, in the words of `names:`."""
        return cell_label(run.config, self.axes, self._short)

    def named(self, value: str) -> str:
        """Return what the sweep calls a value of an axis."""
        return self.spec.names.get(value, value)

    def axis_texts(self, run: Run) -> list[str]:
        """Return the run's value on each axis: of paths the end, of mappings all entries."""
        values = cell_values(run.config, self.axes)
        return [
            value_text(value) if isinstance(value, dict) else self._short[axis][value_text(value)]
            for axis, value in values.items()
        ]

    @cached_property
    def _short(self) -> dict[str, dict[str, str]]:
        """What the values on each axis are called: their names, else short texts."""
        cells = [cell_values(run.config, self.axes) for run in self.grid.cells]
        short = {axis: short_texts(cell[axis] for cell in cells) for axis in self.axes}
        names = self.spec.names
        return {
            axis: {text: names.get(text, end) for text, end in texts.items()}
            for axis, texts in short.items()
        }

    def statuses(self) -> dict[str, Status]:
        """Return the status in each run directory, by run id; `failed` if it cannot be read."""
        return {run.id: self.run_folder(run).readable_status() for run in self.runs}

    def damage(self) -> list[str]:
        """Return what is wrong with the status files that cannot be read."""
        found = []
        for run in self.runs:
            try:
                self.run_folder(run).recorded_status()
            except UserError as error:
                found.append(str(error))
        return found


def make_plan(file: Path, outputs: Path, changes: Sequence[str] = ()) -> Plan:
    """Read a sweep file and expand it; reads no run directory and needs no data.

    `changes`: settings of a command line, `KEY=VALUE`, over those of the file.

    Exception: an Optuna search reads the results of its earlier rounds.

    Errors: `UserError` naming the file, the key and the nearest valid name.
    """
    spec = drawn(read_spec(file, changes), outputs)
    grid = expand(spec)
    checked = set()
    for run in grid.cells:
        config = run.config
        counts = [applies(name, config) and getattr(config, name) for name in PATCH_COUNTS]
        key = repr((config.model_name, config.model_kwargs, counts))
        if key not in checked:
            check_names(config, lambda key: _source(spec, key))
            checked.add(key)
    _check_value_names(spec, grid)
    return Plan(spec, grid, outputs)


def _check_value_names(spec: SweepSpec, grid: Grid) -> None:
    if not spec.names:
        return
    values = {value_text(v) for r in grid.cells for v in cell_values(r.config, grid.axes).values()}
    for value in spec.names:
        if value not in values:
            raise UserError(
                f"{spec.file}: names: {value}: is no value of an axis; {nearest(value, values)}"
            )


def _source(spec: SweepSpec, key: str) -> str:
    """Return the file that sets a field in this sweep."""
    return str(spec.file) if key in spec.axes() else source_of(spec.layers, key)
