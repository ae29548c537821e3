"""The measurement: real steps of tiny runs, and runs that cannot be measured."""

import json
import statistics

import forked
import pytest

from densevit.config.run_config import RunConfig
from densevit.cost import measure
from densevit.cost.measure import main, measured
from densevit.launch.machine import this_machine
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import read_metrics
from densevit.train.execute import execute
from densevit.utils.errors import EXIT_CARRY_ON, EXIT_MISTAKE
from densevit.utils.files import read_json


def all_fields(settings):
    """Return all fields, as in IN.json."""
    return json.loads(json.dumps(RunConfig(**settings).model_dump()))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Return the folder of temporary folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def left_in(folder):
    """Return what a probe has left; torch makes a folder when its compiler is first imported."""
    return [path for path in folder.iterdir() if not path.name.startswith("torchinductor_")]


@pytest.mark.parametrize("mode", ["none", "dense"])
def test_steps_take_about_what_a_real_run_logs(tmp_path, tiny, mode):
    settings = {**tiny, "cl_mode": mode, "epochs": 5, "log_every": 1}
    folder = RunFolder(tmp_path / "run")
    folder.create(RunConfig(**settings))
    assert execute(folder) == 0
    lines, _ = read_metrics(folder.metrics_file)
    logged = [
        sum(value for name, value in line.items() if name.startswith("time/")) / 1000
        for line in lines
        if "train/loss" in line
    ]
    assert len(logged) == 25
    found = measured(all_fields(settings), 1, imports=0.0)
    # Of the same order: the machine may do other work at the same time.
    assert 1 / 5 < statistics.median(found["steps"]) / statistics.median(logged) < 5


def test_a_probe_tells_all_and_leaves_nothing(tiny, temporary):
    # Without loading processes: pytest's threads make forking unsafe.
    found = measured(all_fields(tiny), processes=4, imports=100.0)
    assert len(found["steps"]) == 20, "though an epoch has five"
    assert all(seconds > 0 for seconds in found["steps"])
    assert found["pictures"] == {"train": 42, "val": 15, "dark": 12}
    assert found["device"]
    assert (found["on_gpu"], found["processes"]) == (False, 1), "the whole batch, on a CPU"
    assert 100 < found["startup"] < 200
    assert 0 < found["look"] < 60
    assert 0 < found["evaluated_picture"] < 1
    assert 0 <= found["evaluation"] < 60
    assert not left_in(temporary)


def test_the_beginning_of_an_evaluation_is_told_from_its_pictures(tiny, monkeypatch):
    """Val has 15 images and an evaluation batch 4: 4 batches, the last one of 3."""
    moments = iter([[0.0, 1.0, 2.0], [0.0, 7.0, 12.0, 14.0, 16.0, 99.0]])
    monkeypatch.setattr(measure, "_predicted", lambda *_: next(moments))
    found = measured(all_fields({**tiny, "batch_size": 2}), 1, imports=0.0)
    # The second and third batch take 2 s each: 0.5 s per image. The first ends at 12 s.
    assert (found["evaluated_picture"], found["evaluation"]) == (0.5, 12 - 2)

    # With a batch size of 32 there is one batch; its whole time counts.
    moments = iter([[0.0, 1.0, 2.0], [0.0, 1.0, 30.0]])
    found = measured(all_fields({**tiny, "batch_size": 16}), 1, imports=0.0)
    assert (found["evaluated_picture"], found["evaluation"]) == (30 / 15, 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 64}, "batch_size: 64 is more than the 42 training images of blobs"),
        ({"data_dir": "/nowhere"}, "blobs: data_dir: /nowhere: no such folder"),
        ({"sampled_patches": 17}, "sampled_patches: 17 is more than the 16 patches"),
        ({"device": "cuda"}, "device: cuda: torch sees no GPU here"),
        ({"grad_accumulation": 3}, "grad_accumulation: 3 does not divide batch_size: 8"),
        ({"model_kwargs": {"img_size": 33}}, "model_kwargs: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_told_in_a_line(tiny, temporary, monkeypatch, changes, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = measured(all_fields({**tiny, **changes}), 1, imports=0.0)
    assert found.keys() == {"error"}
    assert words in found["error"]
    assert "\n" not in found["error"]
    assert not left_in(temporary)


def test_a_picture_that_a_loading_process_cannot_read_is_told_in_a_line(tiny, tmp_path):
    for split in ("train", "val"):
        for name in ("red", "green", "blue"):
            for number in range(8):
                path = tmp_path / split / name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"no picture")
    settings = {**tiny, "data_dir": str(tmp_path), "benchmarks": {}, "workers": 1}
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps([{"key": "a", "config": all_fields(settings)}]))
    forked.done([source, target], main)
    found = json.loads(target.read_text())["a"]
    assert ".jpg" in found["error"]
    assert "\n" not in found["error"]


def test_memory_that_is_not_there_is_told_in_a_line(tiny, monkeypatch):
    def build_trainer(*_):
        raise MemoryError("no room for a queue\nof that size")

    monkeypatch.setattr("densevit.train.build.build_trainer", build_trainer)
    found = measured(all_fields(tiny), 1, imports=0.0)
    assert found == {"error": "MemoryError: of that size"}


def test_weights_that_a_run_begins_with_are_not_fetched(tiny):
    settings = {**tiny, "init_checkpoint": "/nowhere/weights.safetensors"}
    assert "steps" in measured(all_fields(settings), 1, imports=0.0)


def test_of_several_gpus_one_gets_its_part_of_the_batch(tiny, monkeypatch):
    monkeypatch.setattr("densevit.train.build.on_gpu", lambda _: True)
    config, processes = measure._of_one_process(all_fields(tiny), 4)
    assert (config.batch_size, processes) == (2, 4)
    found = measured(all_fields(tiny), 3, imports=0.0)
    assert found == {
        "error": "batch_size: 8 cannot be shared evenly by 3 processes with grad_accumulation 1"
    }


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        (1.0, 20),  # as many as requested
        (6.0, 20),  # 19 of them take 114 s, and the last begins within 120
        (7.0, 18),  # 17 take 119 s
        (500.0, 3),  # at least that many
    ],
)
def test_slow_steps_are_measured_less_often(seconds, count):
    steps = iter([seconds] * 100)
    assert len(measure._next_steps(steps, 3, 20, 120.0)) == count


def test_what_is_measured_is_kept_when_the_rest_is_not(tmp_path, monkeypatch, capsys):
    def one_then_stop(settings, processes, imports):
        if settings["n"] == 2:
            assert read_json(target) == {"a": {"n": 1, "processes": 1}}
            raise KeyboardInterrupt
        return {**settings, "processes": processes}

    monkeypatch.setattr(measure, "measured", one_then_stop)
    monkeypatch.setattr(measure, "_import_seconds", lambda: 0.0)
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    wanted = [{"key": "a", "config": {"n": 1}}, {"key": "b", "config": {"n": 2}, "processes": 2}]
    source.write_text(json.dumps(wanted))
    assert main([str(source), str(target)]) == EXIT_CARRY_ON
    assert list(read_json(target)) == ["a"]
    assert "measuring 2 of 2" in capsys.readouterr().err
    assert main([]) == EXIT_MISTAKE


def test_the_name_of_this_machine_says_what_its_speed_depends_on(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    assert ", 8 processors, torch " in this_machine().name
    assert ", 2 processors, torch " in this_machine(jobs=3).name
    assert ", 1 processor, torch " in this_machine(jobs=20).name
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert ", 3 processors, torch " in this_machine(jobs=2).name
