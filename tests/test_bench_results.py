"""Synthetic sweeps have the stated properties, and the bench of results runs; no times are tested."""

import json
import sys
from pathlib import Path

import forked
import numpy as np
import pytest

from densevit.evaluate.metrics import score
from densevit.evaluate.predictions import read_predictions
from densevit.results.collect.numbers import collect, costs, coverage, curves
from densevit.sweep.baseline import baselines

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from madeup import BENCHMARKS, Effects, make_sweep, sweep_record

BENCH = Path(__file__).parents[1] / "bench"


def bench(name, *arguments):
    return forked.done([BENCH / name, *arguments], forked.script)


@pytest.mark.parametrize("cells", [1, 2, 3, 8, 9, 26, 41])
def test_as_many_cells_as_wanted(tmp_path, cells):
    plan = make_sweep(tmp_path, cells, 2, pending=2 * cells)
    assert len(plan.grid.cells) == cells
    assert len(plan.runs) == 2 * cells
    assert len(baselines(plan)) == cells - 1


def test_two_thousand_cells_are_a_grid():
    grid = sweep_record("large", 2000, 5, 10)["grid"]
    sizes = [len(values) for values in grid.values()]
    assert 1 + 2 * sizes[1] * sizes[2] - 1 == 2000
    assert all(len(set(values)) == len(values) for values in grid.values())


def test_what_was_planted_is_found(tmp_path):
    effects = Effects(shared=2.0, own=0.3)
    plan = make_sweep(tmp_path, 3, 200, effects=effects, epochs=1)
    frame = collect(plan)
    top1 = frame[frame["metric"] == "top1"]
    wanted = {
        run.cell: {name: effects.accuracy(run.config, name) for name in BENCHMARKS}
        for run in plan.grid.cells
    }
    means = top1.groupby(["cell", "benchmark"])["value"].mean()
    for cell, accuracies in wanted.items():
        for name, accuracy in accuracies.items():
            assert means[cell, name] == pytest.approx(accuracy, abs=4 * 2.05 / 200**0.5)
    none, other, _ = (run.cell for run in plan.grid.cells)
    val = top1[top1["benchmark"] == "val"].pivot(index="seed", columns="cell", values="value")
    apart = val[other] - val[none]
    assert apart.std() == pytest.approx(0.3 * 2**0.5, rel=0.2)  # without the part that all share
    expected = wanted[other]["val"] - wanted[none]["val"]
    assert apart.mean() == pytest.approx(expected, abs=4 * 0.3 * 2**0.5 / 200**0.5)


def test_the_same_seed_gives_the_same_files(tmp_path):
    first, second, other = (
        make_sweep(tmp_path / str(n), 4, 2, seed=seed, epochs=2, predictions=n != 2, pictures=40)
        for n, seed in ((0, 7), (1, 7), (2, 8))
    )
    for name in ("metrics.jsonl", "results.json", "status.json", "predictions/val.parquet"):
        ours, theirs = ([p.run_folder(r).path / name for r in p.runs] for p in (first, second))
        assert [file.read_bytes() for file in ours] == [file.read_bytes() for file in theirs]
    assert not collect(first)["value"].equals(collect(other)["value"])


def test_predictions_give_the_numbers(tmp_path):
    plan = make_sweep(tmp_path, 3, 2, epochs=2, predictions=True, pictures=120)
    frame = collect(plan).set_index(["run", "benchmark", "metric"])["value"].sort_index()
    hits = {}
    for run in plan.runs:
        clean = read_predictions(plan.run_folder(run).predictions_file("val"))
        for name in BENCHMARKS:
            answers = read_predictions(plan.run_folder(run).predictions_file(name))
            numbers = score(answers, None if name == "val" else clean)
            assert numbers.pop("n") == 120
            assert frame[run.id, name].to_dict() == pytest.approx(numbers)
        hits[run.id] = clean.top[:, 0] == clean.labels
    one, other = list(hits.values())[:2]
    assert 0.2 < np.corrcoef(one, other)[0, 1] < 0.9  # images are equally hard for all


def test_runs_that_failed_or_have_not_begun(tmp_path):
    plan = make_sweep(tmp_path, 3, 2, epochs=4, failed=2, pending=1)
    assert list(coverage(plan)["state"]) == ["finished"] * 3 + ["failed"] * 2 + ["pending"]
    assert costs(plan)["train_seconds"].isna().tolist() == [False] * 3 + [True] * 2
    val = curves(plan, ["val/top1"])
    assert val.groupby("run")["step"].max().loc[[r.id for r in plan.runs[:5]]].tolist() == [
        400, 400, 400, 200, 200,
    ]  # fmt: skip


def test_the_command_prints_the_file(tmp_path):
    done = bench("madeup.py", tmp_path, "--cells", 2, "--seeds", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'sweep.yaml'}\n"
    assert len(list((tmp_path / "outputs" / "runs").iterdir())) == 2


def test_the_bench_of_results(tmp_path):
    file = tmp_path / "bench.json"
    words = ["--only", "gather", "--runs", 20, "--rounds", 1]
    done = bench("results.py", *words, "--json", file)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == ["gather of 20 runs"]
    assert all(row["values"][0] > 0 and row["goal"] > 0 for row in rows)
    assert len(done.stdout.splitlines()) == 2 + len(rows)
    done = bench("results.py", "--only", "gahter")
    assert done.returncode == 2
    assert done.stderr == ("results.py: --only: unknown name 'gahter'; did you mean 'gather'?\n")
