"""What a sweep writes before its runs start."""

from types import SimpleNamespace

import pytest

from densevit import yamlfile
from densevit.data.sources import open_data
from densevit.errors import UserError
from densevit.rundir import read_json, write_json
from densevit.sweep import apply
from densevit.sweep.plan import make_plan
from densevit.sweep.state import Observed, Standing, observe


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "sweep.yaml").write_text("name: a\nfixed: {dataset: blobs}\nseeds: 2\n")
    return make_plan(tmp_path / "sweep.yaml", tmp_path / "out")


def prepare(plan):
    apply.prepare(plan, apply.decide(plan, observe(plan), "local"))


@pytest.mark.parametrize(
    ("state", "job", "local", "ray", "slurm"),
    [
        ("finished", "", "done", "done", "done"),
        ("pending", "", "to_run", "to_run", "to_run"),
        ("failed", "", "to_run", "to_run", "to_run"),
        ("cancelled", "7", "to_run", "to_run", "to_run"),
        ("lost", "7", "to_run", "to_run", "to_run"),
        ("stopped", "", "to_run", "to_run", "to_run"),  # by another sweep's rule
        # A launcher that stays waits for a run that another process works on.
        ("running", "", "to_run", "to_run", "active"),
        ("running", "7", "active", "active", "active"),
        ("queued", "7", "active", "active", "active"),
        # It may be alive on another machine, whose lock is not seen here.
        ("unknown", "", "unknown", "unknown", "unknown"),
        ("unknown", "7", "unknown", "unknown", "unknown"),
    ],
)
def test_a_launcher_takes_what_has_ended_and_leaves_alone_what_may_go_on(
    plan, state, job, local, ray, slurm
):
    observed = Observed({run.id: Standing(state, job=job) for run in plan.runs})
    for launcher, place in (("local", local), ("ray", ray), ("slurm", slurm)):
        found = vars(apply.decide(plan, observed, launcher))
        assert {name for name, runs in found.items() if runs} == {place}, launcher


def test_a_wish_to_stop_is_forgotten_unless_the_run_is_going_on(plan):
    prepare(plan)
    folders = [plan.run_folder(run) for run in plan.runs]
    for folder in folders:
        folder.stop_file.touch()
    with folders[0].lock() as mine:
        assert mine
        prepare(plan)
    assert [folder.stop_file.exists() for folder in folders] == [True, False]


def test_a_sweep_has_begun_when_it_was_first_prepared(plan, monkeypatch):
    now = iter([100.0, 200.0, 300.0])
    monkeypatch.setattr(apply, "time", SimpleNamespace(time=lambda: next(now)))
    record = plan.folder / "plan.json"
    prepare(plan)
    prepare(plan)
    assert read_json(record)["begun"] == 100
    record.write_text("{")
    prepare(plan)
    assert read_json(record)["begun"] == 200, "a record that cannot be read says nothing"


@pytest.mark.parametrize("finished", [False, True])
def test_a_size_that_no_name_tells_is_asked_of_timm(tmp_path, tiny, finished):
    """The drawn set depends on it, and so does whether a run has seen other images."""
    kwargs = {**tiny["model_kwargs"], "img_size": [32, 32]}
    fixed = {**tiny, "dataset": "shapes", "benchmarks": {}, "model_kwargs": kwargs}
    (tmp_path / "sweep.yaml").write_text(yamlfile.dump({"name": "a", "fixed": fixed}))
    plan = make_plan(tmp_path / "sweep.yaml", tmp_path / "out")
    (run,) = plan.runs
    work = apply.Work((), plan.runs, (), ()) if finished else apply.Work(plan.runs, (), (), ())
    file = plan.run_folder(run).fingerprint_file
    write_json(file, open_data(run.config, 32).fingerprint())
    apply.check(plan, work)
    write_json(file, open_data(run.config, 48).fingerprint())
    with pytest.raises(UserError, match=r"'size': 48, .* now .*'size': 32, "):
        apply.check(plan, work)
