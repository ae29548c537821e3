"""What a sweep writes before its runs start."""

from types import SimpleNamespace

import pytest

from densevit.rundir import read_json
from densevit.sweep import apply
from densevit.sweep.plan import make_plan
from densevit.sweep.state import observe


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "sweep.yaml").write_text("name: a\nfixed: {dataset: blobs}\nseeds: 2\n")
    return make_plan(tmp_path / "sweep.yaml", tmp_path / "out")


def prepare(plan):
    apply.prepare(plan, apply.decide(plan, observe(plan), "local"))


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
