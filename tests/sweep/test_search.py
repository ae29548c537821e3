"""Sampled settings: the same for the same file, within their bounds, and good where it pays."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densevit.cli.sweep import main_sweep
from densevit.config import yaml_file
from densevit.runs.directory import run_folder
from densevit.sweep.plan import make_plan
from densevit.sweep.read_spec import read_spec
from densevit.sweep.search import drawn
from densevit.utils.errors import UserError

SPACE = {
    "temperature": {"loguniform": [0.02, 2.0]},
    "lambda_weight": {"uniform": [0.1, 0.9]},
    "queue_size": {"uniform": [100, 65536]},
    "sampling_strategy": {"choice": ["random", "diverse", "hardest"]},
}


def write(folder, **parts):
    (folder / "base.yaml").write_text("dataset: shapes\n")
    file = folder / "found.yaml"
    file.write_text(yaml_file.dump({"name": "found", "base": "base.yaml", **parts}))
    return file


def rows(plan):
    return [[getattr(run.config, name) for name in SPACE] for run in plan.grid.cells]


def test_the_same_file_draws_the_same_and_more_samples_begin_alike(tmp_path):
    few = make_plan(write(tmp_path, search={"space": SPACE, "samples": 5}), tmp_path / "a")
    again = make_plan(write(tmp_path, search={"space": SPACE, "samples": 5}), tmp_path / "b")
    more = make_plan(write(tmp_path, search={"space": SPACE, "samples": 9}), tmp_path / "a")
    other = make_plan(
        write(tmp_path, search={"space": SPACE, "samples": 5, "seed": 1}), tmp_path / "a"
    )
    assert [run.id for run in few.runs] == [run.id for run in again.runs]
    assert rows(more)[:5] == rows(few)
    assert rows(other) != rows(few)
    assert few.axes == tuple(SPACE)


@settings(max_examples=30, deadline=None)
@given(
    low=st.floats(1e-6, 1e3), width=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31 - 1),
    kind=st.sampled_from(["uniform", "loguniform"]),
)  # fmt: skip
def test_what_is_drawn_lies_within_its_bounds(tmp_path_factory, low, width, seed, kind):
    folder = tmp_path_factory.mktemp("bounds")
    bounds = [low, low + width]
    search = {"space": {"temperature": {kind: bounds}}, "samples": 10, "seed": seed}
    spec = drawn(read_spec(write(folder, search=search)), folder)
    assert all(bounds[0] <= value <= bounds[1] for value in spec.zip[-1]["temperature"])


def test_the_distributions_are_those_that_are_asked_for(tmp_path):
    search = {"space": SPACE, "samples": 3000}
    found = drawn(read_spec(write(tmp_path, search=search)), tmp_path).zip[-1]
    logs = [math.log(value) for value in found["temperature"]]
    assert abs(sum(logs) / len(logs) - (math.log(0.02) + math.log(2.0)) / 2) < 0.1
    assert abs(sum(found["lambda_weight"]) / 3000 - 0.5) < 0.02
    assert all(isinstance(size, int) for size in found["queue_size"])
    assert found["temperature"] == [float(f"{value:.4g}") for value in found["temperature"]]
    assert len(set(found["lambda_weight"])) > 2000, "of about 8,000 numbers of four digits"
    assert abs(found["sampling_strategy"].count("diverse") / 3000 - 1 / 3) < 0.05


def test_a_search_beside_a_grid_is_every_combination(tmp_path):
    search = {"space": {"temperature": {"loguniform": [0.02, 2.0]}}, "samples": 3}
    plan = make_plan(write(tmp_path, search=search, grid={"cl_mode": ["none", "dense"]}), tmp_path)
    assert len(plan.grid.cells) == 4, "none has no temperature"


def finish(plan, outputs, top1):
    """Finish runs with the accuracy that a function of their config returns."""
    for run in plan.runs:
        folder = run_folder(outputs, run.id)
        folder.create(run.config)
        folder.write_status("finished", top1=top1(run.config))


def test_optuna_comes_nearer_to_the_best_and_repeats_itself(tmp_path):
    def reached(config):
        return 90 - 20 * abs(math.log10(config.temperature / 0.2))

    search = {
        "space": {"temperature": {"loguniform": [1e-3, 10.0]}},
        "samples": 40, "round": 8, "method": "optuna",
    }  # fmt: skip
    file = write(tmp_path, search=search)
    ids = {}
    for name in ("a", "b"):
        for size in (8, 16, 24, 32, 40):
            plan = make_plan(file, tmp_path / name)
            assert len(plan.runs) == size
            finish(plan, tmp_path / name, reached)
        ids[name] = [run.id for run in plan.runs]
    assert ids["a"] == ids["b"]
    values = [reached(run.config) for run in plan.runs]
    # At random, the mean over 4 decades around 0.2 is 90 - 20 (2.3² + 1.7²) / 8 = 69.6.
    assert sum(values[8:]) / 32 > 76


def test_a_round_waits_for_all_its_runs_and_a_failed_one_is_no_reason_to_wait(tmp_path):
    search = {"space": SPACE, "samples": 6, "round": 3, "method": "optuna"}
    file, outputs = write(tmp_path, search=search), tmp_path / "o"
    plan = make_plan(file, outputs)
    finish(plan, outputs, lambda _: 50.0)
    run_folder(outputs, plan.runs[1].id).write_status("cancelled", top1=50.0)
    assert len(make_plan(file, outputs).runs) == 3
    run_folder(outputs, plan.runs[1].id).write_status("failed")
    assert len(make_plan(file, outputs).runs) == 6


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"space": {"temprature": {"uniform": [0, 1]}}, "samples": 2}, "did you mean 'temperature'?"),
        ({"space": {"temperature": {"unifrom": [0, 1]}}, "samples": 2}, "did you mean 'uniform'?"),
        ({"space": {"temperature": {"uniform": [2, 1]}}, "samples": 2}, "lower first"),
        ({"space": {"queue_size": {"loguniform": [0, 8]}}, "samples": 2}, "queue_size: 0 is out of range"),
        ({"space": {"lambda_weight": {"loguniform": [0, 1]}}, "samples": 2}, "two numbers above 0"),
        ({"space": {"temperature": {"uniform": [1]}}, "samples": 2}, "must be two numbers"),
        ({"space": {"cl_mode": {"choice": ["dense", "denze"]}}, "samples": 2}, "did you mean 'dense'?"),
        ({"space": {"cl_mode": {"choice": []}}, "samples": 2}, "the axis is empty"),
        ({"space": {"workers": {"choice": [1]}}, "samples": 2}, "belongs under `fixed:`"),
        ({"space": {}, "samples": 2}, "search.space: must not be empty"),
        ({"space": SPACE}, "search.samples: is missing"),
        ({"space": SPACE, "samples": 2, "methode": "optuna"}, "did you mean 'method'?"),
        ({"space": SPACE, "samples": 2, "method": "optunna"}, "did you mean 'optuna'?"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path, search, told):
    with pytest.raises(UserError, match=r"found\.yaml: ") as error:
        make_plan(write(tmp_path, search=search), tmp_path)
    assert told in str(error.value)


def test_an_axis_is_listed_or_drawn_and_not_both(tmp_path):
    search = {"space": {"temperature": {"uniform": [0.1, 1]}}, "samples": 2}
    with pytest.raises(UserError, match=r"search\.space\.temperature: is already an axis of grid"):
        make_plan(write(tmp_path, search=search, grid={"temperature": [0.1]}), tmp_path)


RULE = {"scheduler": "asha", "grace_epochs": 2}
FIXED = {"fixed": {"watched": ["shapes-a"]}}


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"early_stop": {**RULE, "scheduler": "ashaa"}}, "did you mean 'asha'?"),
        ({"early_stop": {**RULE, "grace": 2}}, "early_stop.grace: unknown key"),
        ({"early_stop": {**RULE, "metric": "val/top_1"}}, "did you mean 'val/top1'?"),
        ({"early_stop": {**RULE, "reduction": 1}}, "early_stop.reduction: 1 is out of range"),
        ({"early_stop": RULE}, "cl_mode: is compared in the report"),
        ({"early_stop": RULE, "launcher": "local"}, "only the launcher ray ends runs early"),
        ({"ray": {"address": "here"}}, "must be auto, local or HOST:PORT"),
        ({"ray": {"gpus": 1}}, "ray.gpus: unknown key"),
        ({"ray": {"max_failures": -1}}, "ray.max_failures: -1 is out of range"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_on_ray_is_told_before_ray_is_there(tmp_path, capsys, parts, told):
    file = write(tmp_path, **{"launcher": "ray", "grid": {"cl_mode": ["none", "dense"]}, **parts})
    assert main_sweep([str(file), "--outputs", str(tmp_path / "o")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
