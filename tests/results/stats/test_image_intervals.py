"""Intervals over seeds and images in a report: right, and left out when they lie."""

import csv
import math
import sys
from pathlib import Path

import pytest

from densevit.results.analysis import analyze
from densevit.results.collect.numbers import collect
from densevit.results.report import write
from densevit.results.stats import bootstrap, image_intervals
from densevit.results.stats.reference_models import read_references
from densevit.results.stats.seeds import iqm

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
from madeup import BENCHMARKS, make_sweep, write_runs

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def plan(tmp_path):
    return make_sweep(tmp_path, 3, 2, predictions=True, pictures=60, epochs=2)


def found(plan):
    return analyze(plan, read_references(), 1.0, [], 40)


def test_they_are_those_of_the_answers(plan):
    held = found(plan).image_intervals
    frame = collect(plan)
    top1 = frame[frame["metric"] == "top1"]
    none, other = plan.grid.cells[0].cell, plan.grid.cells[1].cell
    for name in top1["benchmark"].unique():
        ours, theirs = bootstrap.paired_hits(plan, other, none, name)
        assert held.differences[other, name] == bootstrap.difference(ours, theirs)
        assert held.cells[none, name] == bootstrap.interval(theirs)
        rows = top1[(top1["cell"] == none) & (top1["benchmark"] == name)]
        assert held.cells[none, name][0] == pytest.approx(rows["value"].mean())
    assert {cell for cell, _ in held.cells} == {run.cell for run in plan.grid.cells}
    assert none not in {cell for cell, _ in held.differences}


def test_they_are_in_the_tables_of_numbers(plan):
    made = write.write(plan)
    held = found(plan)
    with (made.folder / "intervals.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 6
    for row in rows:
        _, low, high = held.image_intervals.cells[row["cell"], row["benchmark"]]
        assert float(row["pictures_low"]) == pytest.approx(low)
        assert float(row["pictures_high"]) == pytest.approx(high)
        assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        assert row["iqm"] == ""  # of two seeds there is no middle half
    with (made.folder / "differences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["cell"], row["benchmark"]) for row in rows} == set(
        held.image_intervals.differences
    )
    for row in rows:
        _, low, high = held.image_intervals.differences[row["cell"], row["benchmark"]]
        assert float(row["pictures_low"]) == pytest.approx(low)
        assert float(row["pictures_high"]) == pytest.approx(high)


def test_many_seeds_have_an_interquartile_mean(tmp_path):
    plan = make_sweep(tmp_path, 1, 9, epochs=2)
    made = write.write(plan)
    frame = collect(plan)
    values = frame[(frame["metric"] == "top1") & (frame["benchmark"] == "val")]["value"]
    with (made.folder / "intervals.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["benchmark"] == "val")
    wanted = iqm(values)
    assert [float(row[name]) for name in ("iqm", "iqm_low", "iqm_high")] == pytest.approx(wanted)
    assert row["pictures_low"] == ""  # no predictions were kept


def test_changed_predictions_change_the_intervals(plan):
    first = found(plan).image_intervals
    write_runs(plan, plan.runs[:1], seed=1, pictures=60)
    again = found(plan).image_intervals
    assert again.cells[plan.runs[0].cell, "val"] != first.cells[plan.runs[0].cell, "val"]
    other = plan.grid.cells[-1].cell
    assert again.cells[other, "val"] == first.cells[other, "val"]


def test_answers_that_are_not_those_of_the_results_say_nothing(plan):
    run = plan.runs[0]
    folder = plan.run_folder(run)
    other = next(r for r in plan.runs if r.cell != run.cell and r.seed == run.seed)
    source = plan.run_folder(other).predictions_file("val")
    folder.predictions_file("val").write_bytes(source.read_bytes())
    held = found(plan).image_intervals
    assert (run.cell, "val") not in held.cells
    assert (run.cell, "imagenet-v2") in held.cells


def test_a_large_sweep_is_asked_for_single_seeds_alone(plan, monkeypatch):
    monkeypatch.setattr(image_intervals, "MOST_FILES", 5)
    held = found(plan).image_intervals
    assert held.cells == {}
    assert held.differences == {}
    lost = plan.run_folder(plan.runs[-1])
    lost.results_file.unlink()
    for name in BENCHMARKS:
        lost.predictions_file(name).unlink()
    held = found(plan).image_intervals
    cell = plan.runs[-1].cell
    assert held.cells == {}
    assert {key[0] for key in held.differences} == {cell}
    assert not math.isnan(held.differences[cell, "val"][1])
