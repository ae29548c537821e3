"""Settings of a command line over a sweep file, and what a sweep's folder holds of earlier plans."""

import json
from pathlib import Path

import pytest

from densevit.cli.main import main_sweep
from densevit.launch.decide import RunActions
from densevit.launch.prepare import prepare
from densevit.sweep.earlier_plans import check_owner, dropped_line
from densevit.sweep.plan import make_plan
from densevit.sweep.texts import typed
from densevit.utils.errors import UserError

SMALL = "fixed: {model_kwargs: {img_size: 32, patch_size: 4}}\n"


def plan_of(folder, lines, *changes, name="sweep.yaml"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"name: little\n{SMALL}{lines}\n")
    return make_plan(folder / name, folder.parent / "out", changes)


def record(plan):
    """Write the plan's record as a launch does, without any run."""
    prepare(plan, RunActions((), (), (), ()))
    return json.loads((plan.folder / "plan.json").read_text())


def finish(plan, run):
    plan.run_folder(run).create(run.config)
    plan.run_folder(run).write_status("finished", epoch=1, epochs=1)


def test_a_setting_of_the_command_line_wins_and_is_recorded(tmp_path):
    sweep = tmp_path / "a"
    plain = plan_of(sweep, "grid: {cl_mode: [none, dense]}")
    plan = plan_of(
        sweep, "grid: {cl_mode: [none, dense]}", "epochs=7", "model_kwargs={depth: 2}", "seeds=2",
        "workers=1", "resources.mem=100",
    )  # fmt: skip
    assert len(plan.runs) == 4
    assert {(r.config.epochs, r.config.workers) for r in plan.runs} == {(7, 1)}
    assert plan.runs[0].config.model_kwargs == {"img_size": 32, "patch_size": 4, "depth": 2}
    assert plan.runs[0].resources == {"mem": "100"}
    assert record(plan)["set"] == list(plan.spec.changes)
    assert "--set epochs=7" in typed(plan, "status")
    # Other runs are another sweep: nothing of the plain one is replaced.
    assert plan_of(sweep, "", "epochs=7").name == "little-epochs-7"
    assert plan.name.startswith("little-epochs-7-model_kwargs-depth-2-seeds-2-")
    # The same runs, executed otherwise, are the same sweep.
    same = plan_of(sweep, "grid: {cl_mode: [none, dense]}", "workers=1", "resources.hours=2")
    assert same.name == "little"
    assert [r.id for r in same.runs] == [r.id for r in plain.runs]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("epoch=2", "--set epoch: unknown key; did you mean 'epochs'?"),
        ("depth=2", "--set depth: unknown key; it is an argument of the network: model_kwargs: {d"),
        ("epochs", "--set epochs: has no value; write KEY=VALUE"),
        ("epochs=", "--set epochs=: has no value; write KEY=VALUE"),
        ("epochs:2", "--set epochs:2: has no value; write KEY=VALUE"),
        ("epochs=many", "--set: epochs: 'many' must be a whole number"),
        ("seed=1", "--set seed: unknown key; write seeds="),
        ("seeds=-1", "--set seeds: -1 must be a number of seeds from 1"),
        ("resource.mem=1", "--set resource.mem: unknown key; did you mean 'resources.mem'?"),
        ("resources.cpus=0", "--set resources.cpus: 0 is out of range; it must be at least 1"),
        ("cl_mode=dense", "varies it; change its values there"),
        ("data_dir='a", "--set 'data_dir='\"'\"'a': line 1 found unexpected end of stream"),
    ],
)
def test_a_wrong_setting_is_told_with_the_nearest(tmp_path, change, told):
    with pytest.raises(UserError) as error:
        plan_of(tmp_path / "a", "grid: {cl_mode: [none, dense]}", change)
    assert told in str(error.value)


def test_a_path_of_the_command_line_counts_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    plan = plan_of(tmp_path / "a", "", "data_dir=images")
    assert plan.runs[0].config.data_dir == str(tmp_path / "here" / "images")


def test_two_files_of_one_name_do_not_replace_each_other(tmp_path, capsys):
    first = plan_of(tmp_path / "a", "grid: {cl_mode: [none, dense]}")
    before = record(first)
    second = plan_of(tmp_path / "b", "grid: {temperature: [0.1, 0.2]}")
    told = f"name: little is also the name of {first.spec.file}, which plans other runs, and "
    with pytest.raises(UserError, match=told):
        check_owner(second)
    outputs = ["--outputs", str(tmp_path / "out")]
    for command in ("run", "plan", "report", "retry"):
        words = ["--failed"] if command == "retry" else []
        assert main_sweep([command, str(second.spec.file), *words, *outputs]) == 2
        assert told in capsys.readouterr().err
    assert json.loads((first.folder / "plan.json").read_text()) == before
    # The same runs from another place, and an edited or a moved file, go on.
    check_owner(plan_of(tmp_path / "c", "grid: {cl_mode: [none, dense]}"))
    check_owner(plan_of(tmp_path / "a", "grid: {cl_mode: [none, global]}"))
    Path(first.spec.file).rename(tmp_path / "a" / "moved.yaml")
    check_owner(second)


def test_finished_runs_that_the_plan_has_lost_are_told(tmp_path, capsys):
    space = "search: {samples: 3, space: {temperature: {uniform: [0.1, 0.2]}}}"
    first = plan_of(tmp_path / "a", space)
    record(first)
    for run in first.runs[:2]:
        finish(first, run)
    assert dropped_line(first) is None
    wider = plan_of(tmp_path / "a", space.replace("0.2]", "0.4]"))
    labels = [f"{first.label(run)}, seed 0" for run in first.runs[:2]]
    told = f"Not in this plan: 2 finished runs of earlier plans of this sweep ({'; '.join(labels)})"
    assert told in dropped_line(wider)
    assert main_sweep(["plan", str(wider.spec.file), "--outputs", str(tmp_path / "out")]) == 0
    assert told in capsys.readouterr().out
    # A launch in between forgets none, and a plan that has them again does not name them.
    assert len(record(wider)["dropped"]) == 3
    assert told in dropped_line(plan_of(tmp_path / "a", space.replace("0.2]", "0.4]")))
    assert dropped_line(plan_of(tmp_path / "a", space)) is None
