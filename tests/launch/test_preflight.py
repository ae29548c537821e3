"""What is checked before a sweep starts, and before its results are shown."""

import shutil

import pytest
from pictures import write_images

from densevit.config import yaml_file
from densevit.data.datasets import open_data
from densevit.evaluate.measured_on import measured_on
from densevit.launch import preflight
from densevit.launch.check_images import check_measured
from densevit.launch.decide import RunActions
from densevit.sweep.plan import make_plan
from densevit.sweep.plan_record import plan_record
from densevit.utils.errors import UserError
from densevit.utils.files import write_json


@pytest.fixture
def finished(tmp_path, tiny, monkeypatch):
    """Return a function that plans a sweep with a benchmark folder `mine`; its run has seen C."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "C", {"red": 2, "green": 2, "blue": 2}, 1)
    shutil.copytree(tmp_path / "C", tmp_path / "B")
    shutil.move(tmp_path / "B" / "red", tmp_path / "held")
    shutil.move(tmp_path / "B" / "blue", tmp_path / "B" / "red")
    shutil.move(tmp_path / "held", tmp_path / "B" / "blue")

    def plan(mine):
        fixed = {**tiny, "benchmarks": {"mine": {"path": mine, "classes": "folder"}}}
        text = yaml_file.dump({"name": "a", "fixed": fixed})
        (tmp_path / "sweep.yaml").write_text(text)
        return make_plan(tmp_path / "sweep.yaml", tmp_path / "out")

    first = plan("C")
    (run,) = first.runs
    record = measured_on(run.config, open_data(run.config, 32), 32)
    write_json(first.run_folder(run).fingerprint_file, record)
    write_json(first.folder / "plan.json", plan_record(first, first.statuses()))
    return plan


def test_a_finished_run_is_held_against_the_images_that_a_benchmark_names_now(finished, tmp_path):
    """C's accuracy was shown for B, whose images have the same names and other labels."""
    for path in ("C", str(tmp_path / "C"), "gone"):
        plan = finished(path)
        preflight.check(plan, RunActions((), plan.runs, (), ()))
        check_measured(plan)
    plan = finished("B")
    for check in (
        check_measured,
        lambda plan: preflight.check(plan, RunActions((), plan.runs, (), ())),
    ):
        with pytest.raises(UserError) as error:
            check(plan)
        message = str(error.value)
        assert "the mine images have changed since this run saw them: then {'content': " in message
        assert message.endswith("give other images another name than 'mine'")
        assert "\n" not in message
    # Images that do not fit the network are a mistake, and not images that have gone.
    (tmp_path / "B" / "red").rename(tmp_path / "B" / "violet")
    with pytest.raises(UserError, match="its classes are not those of train/"):
        check_measured(plan)
    (tmp_path / "out" / "sweeps" / "a" / "plan.json").unlink()
    check_measured(finished("C"))


def test_settings_that_cannot_work_and_weights_that_do_not_fit_start_nothing(tmp_path, tiny):
    for name, fixed, told in (
        ("global_pool", {"model_kwargs": {**tiny["model_kwargs"], "global_pool": ""}},
         "model_kwargs: vit_tiny_patch16_224 cannot be trained with these settings: "),
        ("init", {"init_checkpoint": "w.pt"}, "init_checkpoint: "),
    ):  # fmt: skip
        (tmp_path / "w.pt").write_text("version https://git-lfs.github.com/spec/v1")
        text = yaml_file.dump({"name": name, "fixed": {**tiny, **fixed}})
        (tmp_path / "sweep.yaml").write_text(text)
        plan = make_plan(tmp_path / "sweep.yaml", tmp_path / "out")
        with pytest.raises(UserError) as error:
            preflight.check(plan, RunActions(plan.runs, (), (), ()))
        assert str(error.value).startswith(f"{tmp_path / 'sweep.yaml'}: {told}")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
