"""A whole run: what it writes, what it resumes, and how it fails."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forked import Forked, command
from tiny import tiny_run, without_machine

from densevit.cli.main import main
from densevit.config.identity import SCHEMA_VERSION, identity
from densevit.config.run_config import RunConfig
from densevit.data import check_folders
from densevit.data.image_folder import scan
from densevit.models.export import export_timm
from densevit.runs.checkpoint import Checkpoints, load
from densevit.runs.checkpoint_files import newest_first
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import MetricsFile, read_metrics
from densevit.train import evaluation, signals
from densevit.train.execute import execute
from densevit.train.loop import train
from densevit.train.step import train_step
from densevit.utils.errors import EXIT_CARRY_ON, EXIT_FAILED, EXIT_MISTAKE, Stopped
from densevit.utils.files import read_json


def folder_of(tmp_path, settings, name="run"):
    folder = RunFolder(tmp_path / "runs" / name)
    folder.create(RunConfig(**settings))
    return folder


def lines_of(folder):
    """Return the logged lines of a run, without values that depend on the machine."""
    return [without_machine(line) for line in read_metrics(folder.metrics_file)[0]]


def weights_of(folder):
    state = load(folder.checkpoint_folder, identity(folder.config()).run)
    parts = ("model", "contrast", "averaged")
    return {f"{p}.{name}": v for p in parts for name, v in state.get(p, {}).items()}


def newest(folder):
    return newest_first(folder.checkpoint_folder)[0]


def step_of(checkpoint):
    return int(checkpoint.name.split("-")[1])


SIMPLE = [
    {"cl_mode": "global"},
    {"cl_mode": "dense"},
    {"cl_mode": "joint", "lambda_weight": 0.0},
]
MODES = [
    {"cl_mode": "none"},
    {"cl_mode": "dense", "key_encoder": "momentum", "momentum": 0.9},
    {"cl_mode": "dense", "sampling_strategy": "hardest", "learnable_temp": True,
     "query_patches": 5, "correspondence_features": "random"},
    {"cl_mode": "global", "contrastive_weight_adaptive": True, "lambda_weight": 1.0,
     "precision": "fp16"},
    {"cl_mode": "joint", "lambda_weight": 1.0, "key_encoder": "momentum", "momentum": 0.9,
     "dense_negatives": "pooled"},
    {"cl_mode": "joint", "correspondence_features": "geometry", "sampling_strategy": "diverse"},
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, blobs):
    """Return a function that returns the finished run of a mode; do not change it."""
    root, runs = tmp_path_factory.mktemp("whole"), {}

    def run(mode):
        if str(mode) not in runs:
            folder = folder_of(root, {**tiny_run(blobs), **mode}, f"{len(runs)}")
            assert execute(folder) == 0
            runs[str(mode)] = folder
        return runs[str(mode)]

    return run


@pytest.fixture
def finished(whole, tmp_path, tiny):
    """Return a finished run that may be changed, and a function that executes it with other
    benchmarks."""
    folder = RunFolder(shutil.copytree(whole({"cl_mode": "none"}).path, tmp_path / "finished"))

    def execute_with(**benchmarks):
        folder.create(RunConfig(**{**tiny, "cl_mode": "none", "benchmarks": benchmarks}))
        return execute(folder)

    return folder, execute_with


@pytest.mark.parametrize("mode", [*SIMPLE, *MODES], ids=str)
def test_a_run_leaves_what_the_design_says(whole, mode):
    folder = whole(mode)
    status = folder.status()
    assert (status.state, status.epoch, status.epochs) == ("finished", 2, 2)
    assert (status.step, status.steps) == (10, 10)  # 42 images, batches of 8, two epochs
    results = read_json(folder.results_file)
    ids = identity(folder.config())
    assert (results["run"], results["cell"], results["seed"]) == (ids.run, ids.cell, 0)
    assert list(results["benchmarks"]) == ["val", "dark"]
    lines = lines_of(folder)
    logged = [line["step"] for line in lines if "train/loss" in line]
    assert logged == [2, 4, 5, 6, 8, 10]  # every second step, and the last one of each epoch
    assert [line["step"] for line in lines if "val/top1" in line] == [5, 10]
    assert all(math.isfinite(v) for line in lines for v in line.values())
    contrastive = mode["cl_mode"] != "none" and mode.get("lambda_weight") != 0.0
    assert ("train/contrastive_loss" in lines[1]) is contrastive
    assert ("train/dense_loss" in lines[1]) is (contrastive and mode["cl_mode"] == "joint")
    assert [line["step"] for line in lines if "health/image_rank" in line] == [0, 5, 10]
    start = read_json(folder.provenance_file)["starts"][0]
    assert start["versions"]["torch"] == torch.__version__
    assert {"git_sha", "git_diff", "host", "command", "time"} <= start.keys()
    assert "finished" in folder.log_file.read_text()


def test_the_results_follow_from_the_predictions(whole, blobs):
    folder = whole({"cl_mode": "none"})
    table = pq.read_table(folder.predictions_file("dark"))
    rows = table.to_pylist()
    images = scan(blobs / "dark", "x")
    assert [row["sample"] for row in rows] == list(images.ids)
    assert [row["label"] for row in rows] == list(images.labels)
    assert json.loads(table.schema.metadata[b"classes"]) == list(images.classes)
    numbers = read_json(folder.results_file)["benchmarks"]["dark"]
    top1 = np.mean([row["top5"][0] == row["label"] for row in rows])
    assert numbers["top1"] == pytest.approx(100 * top1)
    assert numbers["top5"] == 100.0  # three classes
    chances = [row["probabilities"][row["top5"].index(row["label"])] for row in rows]
    assert numbers["nll"] == pytest.approx(-np.mean(np.log(chances)), rel=1e-4)
    assert numbers["n"] == 12
    for row in rows:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_all_arms_of_a_seed_start_from_the_same_weights_and_see_the_same_pictures(tmp_path, tiny):
    first = {}
    for mode in ("none", "global", "dense"):
        settings = {**tiny, "cl_mode": mode, "learning_rate": 1e-30, "epochs": 1}
        folder = folder_of(tmp_path, settings, mode)
        execute(folder)
        first[mode] = (weights_of(folder), lines_of(folder))
    for mode in ("global", "dense"):
        for name, value in first["none"][0].items():
            torch.testing.assert_close(first[mode][0][name], value, rtol=0, atol=1e-20)
        for one, other in zip(first["none"][1], first[mode][1], strict=True):
            wanted = one.get("train/classification_loss")
            assert other.get("train/classification_loss") == pytest.approx(wanted)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_total_is_weighed_as_the_design_says(tmp_path, tiny, adaptive):
    weighed = {"lambda_weight": 0.3, "contrastive_weight_adaptive": adaptive}
    folder = folder_of(tmp_path, {**tiny, **weighed, "epochs": 1, "log_every": 1})
    execute(folder)
    lines = [line for line in lines_of(folder) if "train/loss" in line]
    # Of five steps; a line has the number of its last step.
    wanted = [0.3 * done / 5 for done in range(5)] if adaptive else [0.3] * 5
    assert [line["train/lambda"] for line in lines] == pytest.approx(wanted)
    for line, weight in zip(lines, wanted, strict=True):
        parts = line["train/classification_loss"], line["train/contrastive_loss"]
        total = (1 - weight) * parts[0] + weight * parts[1]
        assert line["train/loss"] == pytest.approx(total, rel=1e-5)


def test_the_learning_rate_warms_up_and_decays(tmp_path, tiny):
    settings = {**tiny, "epochs": 3, "warmup_epochs": 1, "log_every": 1, "cl_mode": "none"}
    folder = folder_of(tmp_path, settings)
    execute(folder)
    got = [line["train/learning_rate"] for line in lines_of(folder) if "train/loss" in line]
    warm = [1e-3 * step / 5 for step in range(5)]
    decay = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert got == pytest.approx(warm + decay)


@pytest.mark.parametrize("mode", MODES, ids=str)  # the simple ones are parts of these
def test_a_run_stopped_at_any_time_ends_with_the_same_bits(tmp_path, tiny, whole, mode):
    wanted = whole(mode)
    stopped = folder_of(tmp_path, {**tiny, **mode})
    calls, reached = itertools.count(1), []

    def asked():
        """A stop request before the first step, within two epochs, in a validation and in the
        evaluation."""
        return signal.SIGTERM if next(calls) in (1, 3, 8, 12, 17) else 0

    while not stopped.results_file.exists():
        with suppress(Stopped):
            train(stopped, asked, stopped.config())
        reached.append(step_of(newest(stopped)))
    assert reached == [0, 1, 5, 7, 10, 10]
    assert lines_of(stopped) == lines_of(wanted)
    got = weights_of(stopped)
    for name, value in weights_of(wanted).items():
        assert torch.equal(got[name], value), name


def test_files_are_synced_before_they_are_renamed_and_their_folder_after(
    tmp_path, tiny, monkeypatch
):
    """A checkpoint and the results also wait for the lines of metrics.jsonl that they include."""
    events, fsync, replace = [], os.fsync, Path.replace

    def record(*event):
        events.append((threading.current_thread().name, *event))

    def recorded_fsync(descriptor):
        fsync(descriptor)
        record("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())

    def recorded_replace(path, target):
        record("replace", path, target)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none", "epochs": 1})
    assert execute(folder) == 0
    for thread, file in (("checkpoint", newest(folder)), ("MainThread", folder.results_file)):
        found = [event for name, *event in events if name == thread]
        place = next(number for number, event in enumerate(found) if event[-1] == file)
        temporary = found[place][1]
        assert found[place - 2 : place + 2] == [
            ["fsync", folder.metrics_file],
            ["fsync", temporary],
            ["replace", temporary, file],
            ["fsync", file.parent],
        ]


def test_a_run_of_an_earlier_schema_version_is_read_and_not_continued(tmp_path, tiny, monkeypatch):
    settings = {**tiny, "cl_mode": "none", "epochs": 1}
    with monkeypatch.context() as before:
        before.setattr("densevit.config.identity.SCHEMA_VERSION", SCHEMA_VERSION - 1)
        before.setattr("densevit.runs.directory.SCHEMA_VERSION", SCHEMA_VERSION - 1)
        folder = folder_of(tmp_path, settings, identity(RunConfig(**settings)).run)
        assert execute(folder) == 0
    old = folder.path.name
    assert identity(folder.config()).run != old
    assert main(["eval", str(folder.path), f"again={tiny['benchmarks']['dark']}"]) == 0
    results = read_json(folder.results_file)["benchmarks"]
    assert results["again"]["top1"] == results["dark"]["top1"]
    assert export_timm(folder, tmp_path / "weights.safetensors").startswith("timm.create_model(")
    folder.results_file.unlink()
    folder.write_status("cancelled")
    assert execute(folder) == EXIT_MISTAKE
    said = folder.log_file.read_text()
    assert f"begun with schema version {SCHEMA_VERSION - 1}, and this is version" in said
    assert newest_first(folder.checkpoint_folder), "nothing is lost"


def test_a_resumed_run_does_not_repeat_the_warnings_of_earlier_starts(tmp_path, tiny, monkeypatch):
    def step(engine, batch, weight, number, mark):
        if number == 1:
            batch = batch._replace(view1=batch.view1 * math.nan)
        return train_step(engine, batch, weight, number, mark)

    steps = Mock(side_effect=step)
    monkeypatch.setattr("densevit.train.loop.train_step", steps)
    monkeypatch.setattr("densevit.train.loop.measure_health", lambda *_: {"collapsed": 1.0})
    settings = {**tiny, "cl_mode": "global", "epochs": 1, "health_every": 1}
    folder = folder_of(tmp_path, settings)
    assert (
        execute(folder, stop_signal=lambda: signal.SIGTERM * (steps.call_count == 3))
        == EXIT_CARRY_ON
    )
    assert execute(folder) == 0
    log = folder.log_file.read_text()
    assert "continuing after step 3 of 5" in log
    assert log.count("1 steps up to step 2 were skipped") == log.count("were skipped") == 1
    assert log.count("have collapsed at step 1:") == log.count("have collapsed") == 1


def test_status_and_results_count_all_starts_of_a_run(tmp_path, tiny, monkeypatch):
    steps = Mock(side_effect=train_step)
    monkeypatch.setattr("densevit.train.loop.train_step", steps)
    for clock in ("time", "perf_counter"):  # each step takes ten seconds
        monkeypatch.setattr(time, clock, lambda: 1e9 + 10 * steps.call_count)
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none", "log_every": 1})
    found = []
    for stop in (7, 8):
        code = execute(folder, stop_signal=lambda: signal.SIGTERM * (steps.call_count == stop))  # noqa: B023
        assert code == EXIT_CARRY_ON
        status = folder.status()
        assert (status.epoch, status.step, status.steps, status.spent) == (1, stop, 10, 10 * stop)
        found.append(status.top1)
    assert found[0] is not None
    assert found[1] == found[0], "of the first epoch"
    with monkeypatch.context() as patch:
        patch.setattr("densevit.train.loop.evaluate_missing", Mock(side_effect=RuntimeError))
        assert execute(folder) == EXIT_FAILED
    assert folder.status().spent == 100
    assert execute(folder) == 0
    assert folder.status().spent == 100
    assert read_json(folder.results_file)["train_seconds"] == 100


def test_a_checkpoint_is_written_when_its_minutes_have_passed(tmp_path, tiny, monkeypatch):
    """Each step takes 50 seconds; before the fourth, a checkpoint is still being written."""
    steps, saved = Mock(side_effect=train_step), []
    clock = SimpleNamespace(time=time.time, monotonic=lambda: 50.0 * steps.call_count)
    monkeypatch.setattr("densevit.train.loop.train_step", steps)
    monkeypatch.setattr("densevit.train.loop.time", clock)
    monkeypatch.setattr("densevit.train.checkpointing.time", clock)
    monkeypatch.setattr(Checkpoints, "prepare", lambda *_: None)
    monkeypatch.setattr(Checkpoints, "busy", property(lambda _: steps.call_count == 3))
    monkeypatch.setattr(Checkpoints, "save", lambda _, state, step, first: saved.append(step))
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none", "checkpoint_minutes": 2})
    assert execute(folder) == 0
    assert saved == [4, 5, 8, 10]  # 120 seconds after the last, and at the end of an epoch


def test_a_run_on_a_full_disk_loses_no_line_of_metrics(tmp_path, tiny, whole, monkeypatch):
    steps = Mock(side_effect=train_step)

    def flush(self, real=MetricsFile.flush):
        return steps.call_count < 7 and real(self)

    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none"})
    with monkeypatch.context() as patch:
        patch.setattr("densevit.train.loop.train_step", steps)
        patch.setattr(MetricsFile, "flush", flush)
        assert execute(folder) == EXIT_FAILED
    told = f"{folder.metrics_file}: No space left on device"
    assert (folder.status().message, folder.status().cause) == (told, "code")
    assert step_of(newest(folder)) == 5, "a checkpoint counts no line that is not written"
    assert not folder.results_file.exists()
    assert execute(folder) == 0
    assert lines_of(folder) == lines_of(whole({"cl_mode": "none"}))


@pytest.mark.parametrize(
    ("error", "cause", "message"),
    [
        (RuntimeError("first\nlast"), "code", "RuntimeError: last"),
        (MemoryError(), "oom", "MemoryError: "),
        (RuntimeError("CUDA out of memory."), "oom", "RuntimeError: CUDA out of memory."),
    ],
    ids=repr,
)
def test_the_status_of_a_failed_run_says_why(tmp_path, tiny, monkeypatch, error, cause, message):
    monkeypatch.setattr("densevit.train.loop.train_step", Mock(side_effect=error))
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none"})
    assert execute(folder) == EXIT_FAILED
    status = folder.status()
    assert (status.state, status.cause, status.message) == ("failed", cause, message)


def test_a_finished_run_is_not_trained_again_and_a_new_benchmark_is_evaluated(finished, blobs):
    folder, execute_with = finished
    before = newest(folder).stat().st_mtime_ns, lines_of(folder)
    starts = folder.provenance_file.read_text()
    assert execute(folder) == 0
    assert folder.provenance_file.read_text() == starts
    folder.write_status("running", **folder.progress())  # it was killed after its results
    assert execute(folder) == 0
    assert (folder.status().state, folder.status().step) == ("finished", 10)
    assert execute_with(dark=str(blobs / "dark"), again=str(blobs / "dark")) == 0
    results = read_json(folder.results_file)["benchmarks"]
    assert list(results) == ["val", "dark", "again"]
    assert results["again"] == results["dark"]
    assert newest(folder).stat().st_mtime_ns == before[0]
    assert lines_of(folder)[: len(before[1])] == before[1]


def test_other_pictures_than_before_are_refused(finished):
    folder, _ = finished
    record = read_json(folder.fingerprint_file)
    record["train"]["images"] = 7
    folder.fingerprint_file.write_text(json.dumps(record))
    folder.results_file.unlink()
    assert execute(folder) == EXIT_MISTAKE
    assert "the train images have changed" in folder.status().message


def test_a_benchmark_that_is_removed_and_added_again_must_have_the_same_images(
    finished, blobs, tmp_path
):
    folder, execute_with = finished
    fewer = shutil.copytree(blobs / "dark", tmp_path / "fewer")
    shutil.rmtree(sorted(each for each in fewer.iterdir() if each.is_dir())[0])
    assert execute_with(again=str(blobs / "dark"), fewer=str(fewer)) == 0
    assert "fewer: has no images of 1 of its 3 classes" in folder.log_file.read_text()
    assert list(read_json(folder.fingerprint_file)["benchmarks"]) == ["dark", "again", "fewer"]
    other = shutil.copytree(blobs / "dark", tmp_path / "other")
    next(other.rglob("*.png")).unlink()
    assert execute_with(dark=str(other), third=str(blobs / "dark")) == EXIT_MISTAKE
    assert "the dark images have changed" in folder.status().message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"cl_mode": "joint", "model_kwargs": {"class_token": False, "global_pool": "avg"}},
            "has no class token: the mean of its patches represents the image",
        ),
        (SIMPLE[2], "no contrastive loss is computed"),
        (MODES[4], "accuracies are those of a linear probe"),
        (SIMPLE[1], None),
    ],
    ids=str,
)
def test_what_a_reader_may_not_expect_is_said_once(whole, tiny, fields, said):
    if "model_kwargs" in fields:
        fields = {**fields, "model_kwargs": {**tiny["model_kwargs"], **fields["model_kwargs"]}}
    told = whole(fields).log_file.read_text()
    phrases = "class token", "no contrastive loss", "linear probe"
    if said is None:
        assert not any(phrase in told for phrase in phrases)
    else:
        assert told.count(said) == 1


def test_a_diverging_run_fails_with_step_and_learning_rate(tmp_path, tiny):
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none", "learning_rate": 1e30, "grad_clip": 0})
    assert execute(folder) == EXIT_FAILED
    assert re.fullmatch(
        r"the loss or its gradient was not finite in 5 steps in a row, at step 6 with "
        r"learning_rate \S+e\+29; they were skipped; the last good checkpoint is \S*"
        r"/checkpoint/step-00000005-\w+\.pt; a smaller learning_rate or precision: bf16 may help",
        folder.status().message,
    )
    assert folder.status().cause == "nan"
    lines = lines_of(folder)
    assert math.isfinite(lines[1]["train/loss"]), "of the step before it diverged"
    assert lines[-1]["train/loss"] == lines[-1]["train/top1"] == "NaN"
    assert [line["val/nll"] for line in lines if "val/nll" in line] == ["NaN"]
    # Plain JSON, without the constants that only Python and JavaScript accept.
    assert not re.search(r"[^\"](NaN|Infinity)", folder.metrics_file.read_text())


def test_float16_says_nothing_of_steps_that_it_skips_to_find_its_scale(tmp_path, tiny):
    lost = {"learning_rate": 1e30, "grad_clip": 0, "precision": "fp16", "log_every": 1}
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none", **lost})
    assert execute(folder) == EXIT_FAILED
    trained = [line for line in lines_of(folder) if "train/skipped_steps" in line]
    assert trained[-1]["train/skipped_steps"] > 1
    assert "train/loss" not in trained[-1]
    assert not any(line.get("train/loss") == "NaN" for line in trained)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_picture_fails_the_run_and_names_itself(tmp_path, tiny, workers, monkeypatch):
    monkeypatch.setattr(check_folders, "MOST_IMAGES", 0)  # as if the set were too large to read
    shutil.copytree(tiny["data_dir"], tmp_path / "data")
    torn = tmp_path / "data" / "train" / "red" / "3.png"
    torn.write_bytes(torn.read_bytes()[:100])
    folder = folder_of(tmp_path, {**tiny, "data_dir": str(tmp_path / "data"), "workers": workers})
    assert execute(folder) == EXIT_MISTAKE
    assert folder.status().message.startswith(f"{torn}: cannot be read as an image")


def start(folder, **options):
    command = [sys.executable, "-m", "densevit", "train", "--run-dir", str(folder.path)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def forked(folder, *more, **environment):
    arguments = ["train", "--run-dir", str(folder.path)]
    return Forked(arguments, folder.path.with_name("said"), *more, **environment)


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def held_in_its_seventh_step(arguments):
    """Run `densevit`, which waits in that step until the file `go` is next to the run directory."""
    from densevit.train import loop

    steps, go = itertools.count(1), Path(arguments[-1]).with_name("go")

    def step(*given):
        if next(steps) == 7:
            print("held", flush=True)
            wait_for(go.exists)
        return train_step(*given)

    loop.train_step = step
    return command(arguments)


def test_signals_stop_a_process_and_the_same_command_carries_on(tmp_path, tiny):
    settings = {**tiny, "epochs": 5, "cl_mode": "global", "log_every": 1}
    folder, go = folder_of(tmp_path, settings), tmp_path / "runs" / "go"
    ends = (
        (signal.SIGTERM, EXIT_CARRY_ON, "cancelled", {7}),
        (signal.SIGINT, EXIT_CARRY_ON, "cancelled", {14}),
        (signal.SIGKILL, -signal.SIGKILL, "failed", {15, 20}),  # the second may be half written
    )
    for start, (number, code, state, reached) in enumerate(ends, 1):
        go.unlink(missing_ok=True)
        process = forked(folder, held_in_its_seventh_step)
        wait_for(lambda: process.output().count("held\n") == start)  # noqa: B023
        assert folder.status().state == "running"
        assert folder.locked()
        process.send_signal(number)
        go.touch()
        assert process.wait(240) == code
        assert folder.status().state == state
        assert not folder.locked()
        assert step_of(newest(folder)) in reached
    assert forked(folder).wait(120) == 0
    steps = [line["step"] for line in lines_of(folder) if "train/loss" in line]
    assert steps == list(range(1, 5 * 5 + 1)), "no line missing, none doubled"
    assert len(read_json(folder.provenance_file)["starts"]) == 4
    assert len(list(folder.checkpoint_folder.iterdir())) == 2, "the last two, and nothing else"


@pytest.mark.parametrize(
    ("number", "starting"),
    [
        (signal.SIGTERM, partial(start, start_new_session=True)),
        (signal.SIGINT, forked),  # also in its own session
        (signal.SIGUSR2, forked),
    ],
    ids=["SIGTERM", "SIGINT", "SIGUSR2"],
)
def test_a_signal_to_all_processes_of_a_run_leaves_a_checkpoint(tmp_path, tiny, number, starting):
    """As Slurm and a terminal send it: also to image-loading processes, and more than once."""
    settings = {**tiny, "epochs": 200, "cl_mode": "dense", "log_every": 1, "workers": 2}
    folder = folder_of(tmp_path, settings)
    process = starting(folder)
    wait_for(lambda: folder.metrics_file.exists() and len(lines_of(folder)) > 12)
    os.killpg(process.pid, number)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    assert process.wait(240) == EXIT_CARRY_ON
    assert (folder.status().state, folder.status().message) == ("cancelled", number.name)
    assert max(line["step"] for line in lines_of(folder)) == step_of(newest(folder))


def test_ctrl_c_again_after_half_a_second_stops_amid_a_step(tmp_path, tiny, monkeypatch):
    moments = [0.0, 0.4, 9.0, 9.1]  # of signals; other signals come more than once by themselves
    numbers = [signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    clock = SimpleNamespace(time=time.time, monotonic=lambda: moments.pop(0))

    def step(*_):
        monkeypatch.setattr(signals, "time", clock)
        while numbers:
            signal.raise_signal(numbers.pop(0))
        pytest.fail("it went on")

    monkeypatch.setattr("densevit.train.loop.train_step", step)
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none"})
    assert execute(folder) == EXIT_CARRY_ON
    assert (moments, numbers) == ([], [])
    assert (folder.status().state, folder.status().message) == ("cancelled", "SIGINT")
    assert newest_first(folder.checkpoint_folder) == []


def test_a_benchmark_that_is_added_leaves_its_lines_once_whenever_it_is_killed(
    finished, blobs, monkeypatch
):
    folder, execute_with = finished
    before, checkpoints = lines_of(folder), newest_first(folder.checkpoint_folder)

    def stopped(path, _content):
        assert path == folder.results_file
        raise Stopped("test")

    monkeypatch.setattr(evaluation, "write_json", stopped)
    assert execute_with(dark=str(blobs / "dark"), again=str(blobs / "dark")) == EXIT_CARRY_ON
    assert len(lines_of(folder)) == len(before) + 1
    assert newest_first(folder.checkpoint_folder) == checkpoints, "no other is written"
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 10, "half')
    monkeypatch.undo()
    assert execute(folder) == 0
    after = lines_of(folder)
    assert after[:-1] == before
    numbers = {"top1", "top1_low", "top1_high", "top5", "nll", "ece", "matched_clean"}
    assert set(after[-1]) == {"step", "epoch", *(f"again/{name}" for name in numbers)}


def test_a_run_that_another_process_holds_is_left_alone(tmp_path, tiny):
    folder = folder_of(tmp_path, tiny)
    with folder.lock() as mine:
        assert mine
        busy = forked(folder, SLURM_STEP_NUM_TASKS="2")  # as `srun -n 2 densevit train` does
        assert busy.wait(240) == EXIT_CARRY_ON
        assert "another process is working on this run; srun has started 2 tasks" in busy.output()
    assert not folder.status_file.exists()


_HOLDING = """
import os, signal, sys
from pathlib import Path
from densevit.runs.directory import RunFolder

with RunFolder(Path(sys.argv[1])).lock() as mine:
    if os.fork() == 0:
        print(mine, os.getpid(), flush=True)
    signal.pause()
"""


def test_a_run_is_free_when_its_process_was_killed_and_a_forked_one_lives_on(tmp_path, tiny):
    folder = folder_of(tmp_path, tiny)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDING, str(folder.path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        mine, child = holder.stdout.readline().split()
        assert (mine, folder.locked()) == ("True", True)
        holder.kill()
        holder.wait()
        os.kill(int(child), 0)  # it is there
        assert not folder.locked()
        os.kill(int(child), signal.SIGKILL)


def test_a_lost_checkpoint_or_lost_metrics_are_told_and_nothing_is_trained_over_them(
    tmp_path, finished, blobs
):
    folder, execute_with = finished
    before = folder.metrics_file.read_bytes(), folder.results_file.read_text()
    folder.checkpoint_folder.rename(tmp_path / "kept")
    assert execute_with(again=str(blobs / "dark")) == EXIT_MISTAKE
    assert "the checkpoint is gone" in folder.status().message
    assert (folder.metrics_file.read_bytes(), folder.results_file.read_text()) == before
    (tmp_path / "kept").rename(folder.checkpoint_folder)
    folder.results_file.unlink()
    folder.metrics_file.write_bytes(before[0][:100])
    assert execute(folder) == EXIT_MISTAKE
    assert "is shorter than when its checkpoint was written" in folder.status().message
    assert folder.metrics_file.read_bytes() == before[0][:100]


def test_a_broken_picture_ends_a_run_with_loading_processes(tmp_path, tiny, blobs):
    """Loading processes ignore signals, and Python waits for them at its end."""
    shutil.copytree(blobs, tmp_path / "data")
    broken = next((tmp_path / "data" / "train").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    folder = folder_of(tmp_path, {**tiny, "data_dir": str(tmp_path / "data"), "workers": 2})
    process = forked(folder)
    assert process.wait(120) == EXIT_MISTAKE, process.output()
    assert broken.name in folder.status().message
