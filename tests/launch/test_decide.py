"""What a sweep writes before its runs start."""

from types import SimpleNamespace

import pytest

from densevit.config import yaml_file
from densevit.data.datasets import open_data
from densevit.launch import decide, preflight
from densevit.launch import prepare as apply
from densevit.launch.launchers import LAUNCHERS, observe
from densevit.launch.run_state import Observed, RunState
from densevit.sweep.plan import make_plan
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "sweep.yaml").write_text("name: a\nfixed: {dataset: blobs}\nseeds: 2\n")
    return make_plan(tmp_path / "sweep.yaml", tmp_path / "out")


def prepare(plan):
    apply.prepare(plan, decide.decide(plan, observe(plan), foreground=True))


@pytest.mark.parametrize(
    ("state", "job", "in_foreground", "as_job"),
    [
        ("finished", "", "done", "done"),
        ("pending", "", "to_run", "to_run"),
        ("failed", "", "to_run", "to_run"),
        ("cancelled", "7", "to_run", "to_run"),
        ("lost", "7", "to_run", "to_run"),
        ("stopped", "", "to_run", "to_run"),  # by another sweep's rule
        # A launcher in the foreground waits for a run that another process works on.
        ("running", "", "to_run", "active"),
        ("running", "7", "active", "active"),
        ("queued", "7", "active", "active"),
        # It may be alive on another machine, whose lock is not seen here.
        ("unknown", "", "unknown", "unknown"),
        ("unknown", "7", "unknown", "unknown"),
    ],
)
def test_a_launcher_takes_what_has_ended_and_leaves_alone_what_may_go_on(
    plan, state, job, in_foreground, as_job
):
    observed = Observed({run.id: RunState(state, job=job) for run in plan.runs})
    expected = {"local": in_foreground, "ray": in_foreground, "slurm": as_job}
    for launcher in LAUNCHERS:
        found = vars(decide.decide(plan, observed, foreground=launcher.foreground))
        assert {name for name, runs in found.items() if runs} == {expected[launcher.name]}


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
    """It determines the drawn set, and so whether a run has seen other images."""
    kwargs = {**tiny["model_kwargs"], "img_size": [32, 32]}
    fixed = {**tiny, "dataset": "shapes", "benchmarks": {}, "model_kwargs": kwargs}
    (tmp_path / "sweep.yaml").write_text(yaml_file.dump({"name": "a", "fixed": fixed}))
    plan = make_plan(tmp_path / "sweep.yaml", tmp_path / "out")
    (run,) = plan.runs
    work = (
        decide.RunActions((), plan.runs, (), ())
        if finished
        else decide.RunActions(plan.runs, (), (), ())
    )
    file = plan.run_folder(run).fingerprint_file
    write_json(file, open_data(run.config, 32).fingerprint())
    preflight.check(plan, work)
    write_json(file, open_data(run.config, 48).fingerprint())
    with pytest.raises(UserError, match=r"then \{.size.: 48\}, now \{.size.: 32\}"):
        preflight.check(plan, work)
