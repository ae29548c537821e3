"""Synthetic sweeps: run directories like those of finished runs, without any training."""

from __future__ import annotations

import random

import pytest

from densevit.config.identity import SCHEMA_VERSION
from densevit.sweep.plan import make_plan
from densevit.utils.files import write_json

FIXED = "dataset: shapes, model_kwargs: {img_size: 32, patch_size: 4}, epochs: 10"


@pytest.fixture
def no_figures(monkeypatch):
    """Reports without figures, which have tests of their own and take most of a report's time."""
    monkeypatch.setattr("densevit.results.report.figures.draw_all", lambda *_: {})


@pytest.fixture
def sweep(tmp_path):
    """Return a function that writes a sweep file with the given lines and plans it; `fixed` is text
    that is added to the fixed settings."""

    def make(*lines, name="made_up", fixed=""):
        file = tmp_path / f"{name}.yaml"
        file.write_text("\n".join([f"name: {name}", f"fixed: {{{FIXED}{fixed}}}", *lines]) + "\n")
        return make_plan(file, tmp_path / "outputs")

    return make


@pytest.fixture
def finish():
    """Finish a run of a plan with the given top-1 accuracies (percent)."""

    def write(plan, run, top1, nll=1.0):
        folder = plan.run_folder(run)
        ids = folder.create(run.config)
        benchmarks = {
            name: {
                "top1": value,
                "top5": min(100.0, value + 10),
                "nll": nll,
                "ways": 1000,
                "n": 500,
            }
            for name, value in top1.items()
        }
        results = {
            "run": ids.run,
            "cell": ids.cell,
            "seed": run.seed,
            "schema_version": SCHEMA_VERSION,
        }
        results |= {"epochs": 10, "train_seconds": 1.5, "benchmarks": benchmarks}
        write_json(folder.results_file, results)
        folder.write_status("finished", epoch=10, epochs=10)

    return write


@pytest.fixture
def finish_all(finish):
    """Finish every run with random accuracies; return them by run id."""

    def write(plan, benchmarks=("val", "shapes-a", "shapes-sketch"), seed=0):
        chance, numbers = random.Random(seed), {}
        for run in plan.runs:
            numbers[run.id] = {name: chance.uniform(20, 90) for name in benchmarks}
            finish(plan, run, numbers[run.id])
        return numbers

    return write
