"""A plan: what a sweep file wants, and what of it the run directories already hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densevit.layers import source_of
from densevit.rundir import RunFolder, Status, run_folder, sweep_folder
from densevit.sweep.grid import Grid, Run, cell_label, expand
from densevit.sweep.search import drawn
from densevit.sweep.spec import SweepSpec, read_spec
from densevit.vit_names import check_names


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep and the outputs folder they belong to."""

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
        """The run's cell in words."""
        return cell_label(run.config, self.axes)

    def statuses(self) -> dict[str, Status]:
        """Run id to what its run directory says."""
        return {run.id: self.run_folder(run).status() for run in self.runs}


def make_plan(file: Path, outputs: Path) -> Plan:
    """Read a sweep file and expand it; touches no run directory and needs no data.

    Only a search by Optuna looks at results: those of its earlier rounds.

    Errors: `UserError` naming the file, the key and the nearest valid name.
    """
    spec = drawn(read_spec(file), outputs)
    grid = expand(spec)
    checked = set()
    for run in grid.cells:
        names = (run.config.model_name, repr(run.config.model_kwargs))
        if names not in checked:
            check_names(run.config, lambda key: _source(spec, key))
            checked.add(names)
    return Plan(spec, grid, outputs)


def _source(spec: SweepSpec, key: str) -> str:
    """The file that gives a field its value in this sweep."""
    return str(spec.file) if key in spec.axes() else source_of(spec.layers, key)
