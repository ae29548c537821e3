"""A whole run: what it writes, what it continues, and how it fails."""

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

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forked import Forked
from tiny import without_machine

from densevit import exam
from densevit.checkpoint import load, newest_first
from densevit.config import RunConfig, identity
from densevit.data.folders import scan
from densevit.errors import EXIT_CARRY_ON, EXIT_FAILED, EXIT_MISTAKE, Stopped
from densevit.lifecycle import execute
from densevit.rundir import RunFolder, read_json, read_metrics
from densevit.step import train_step
from densevit.train import train


def folder_of(tmp_path, settings, name="run"):
    folder = RunFolder(tmp_path / "runs" / name)
    folder.create(RunConfig(**settings))
    return folder


def lines_of(folder):
    """What the run logged, but for what its machine had to do with."""
    return [without_machine(line) for line in read_metrics(folder.metrics_file)[0]]


def weights_of(folder):
    state = load(folder.checkpoint_folder, identity(folder.config()).run)
    parts = ("model", "contrast", "averaged")
    return {f"{p}.{name}": v for p in parts for name, v in state.get(p, {}).items()}


def newest(folder):
    return newest_first(folder.checkpoint_folder)[0]


MODES = [
    {"cl_mode": "none"},
    {"cl_mode": "global"},
    {"cl_mode": "dense"},
    {"cl_mode": "dense", "key_encoder": "momentum", "momentum": 0.9},
    {"cl_mode": "dense", "sampling_strategy": "hardest", "learnable_temp": True,
     "query_patches": 5, "correspondence_features": "random"},
    {"cl_mode": "global", "contrastive_weight_adaptive": True, "lambda_weight": 1.0},
    {"cl_mode": "joint", "lambda_weight": 1.0, "key_encoder": "momentum", "momentum": 0.9,
     "dense_negatives": "pooled"},
    {"cl_mode": "joint", "correspondence_features": "geometry", "sampling_strategy": "diverse"},
    {"cl_mode": "joint", "lambda_weight": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_run_leaves_what_the_design_says(tmp_path, tiny, mode):
    folder = folder_of(tmp_path, {**tiny, **mode})
    assert execute(folder) == 0
    status = folder.status()
    assert (status.state, status.epoch, status.epochs) == ("finished", 2, 2)
    assert (status.step, status.steps) == (10, 10)  # 42 pictures, batches of 8, two epochs
    results = read_json(folder.results_file)
    ids = identity(folder.config())
    assert (results["run"], results["cell"], results["seed"]) == (ids.run, ids.cell, 0)
    assert list(results["benchmarks"]) == ["val", "dark"]
    lines = lines_of(folder)
    logged = [line["step"] for line in lines if "train/loss" in line]
    assert logged == [2, 4, 5, 6, 8, 10]  # every second step, and each epoch's last
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


def test_the_results_follow_from_the_predictions(tmp_path, tiny, blobs):
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none", "epochs": 3})
    assert execute(folder) == 0
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
        folder = folder_of(tmp_path, {**tiny, "cl_mode": mode, "learning_rate": 1e-30}, mode)
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
    # Of five steps; a line is of the step that it ends with.
    wanted = [0.3 * done / 5 for done in range(5)] if adaptive else [0.3] * 5
    assert [line["train/lambda"] for line in lines] == pytest.approx(wanted)
    for line, weight in zip(lines, wanted, strict=True):
        parts = line["train/classification_loss"], line["train/contrastive_loss"]
        total = (1 - weight) * parts[0] + weight * parts[1]
        assert line["train/loss"] == pytest.approx(total, rel=1e-5)


def test_the_learning_rate_warms_up_and_decays(tmp_path, tiny):
    settings = {**tiny, "epochs": 4, "warmup_epochs": 1, "log_every": 1, "cl_mode": "none"}
    folder = folder_of(tmp_path, settings)
    execute(folder)
    got = [line["train/learning_rate"] for line in lines_of(folder) if "train/loss" in line]
    warm = [1e-3 * step / 5 for step in range(5)]
    decay = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 15)) for step in range(15)]
    assert got == pytest.approx(warm + decay)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_run_stopped_at_any_time_ends_with_the_same_bits(tmp_path, tiny, mode):
    settings = {**tiny, **mode, "epochs": 3}
    whole = folder_of(tmp_path, settings, "whole")
    assert execute(whole) == 0
    stopped = folder_of(tmp_path, settings, "stopped")
    calls = 0

    def asked():
        """At a first step, amid an epoch, and in the evaluations."""
        nonlocal calls
        calls += 1
        return signal.SIGTERM if calls in (1, 3, 5, 9, 15, 22, 30) else 0

    starts = 0
    while not stopped.results_file.exists():
        starts += 1
        with suppress(Stopped):
            train(stopped, asked, stopped.config())
    assert starts > 5
    assert lines_of(stopped) == lines_of(whole)
    got = weights_of(stopped)
    for name, value in weights_of(whole).items():
        assert torch.equal(got[name], value), name


def test_files_are_synced_before_they_are_renamed_and_their_folder_after(
    tmp_path, tiny, monkeypatch
):
    """A checkpoint and the results also wait for the lines of metrics.jsonl that they count."""
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


def test_a_resumed_run_does_not_warn_again_of_earlier_skipped_steps(tmp_path, tiny, monkeypatch):
    def step(engine, batch, weight, number, mark):
        if number == 1:
            batch = batch._replace(view1=batch.view1 * math.nan)
        return train_step(engine, batch, weight, number, mark)

    monkeypatch.setattr("densevit.train.train_step", step)
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none", "epochs": 1})
    calls = iter([0, 0, 0, 0, signal.SIGTERM])  # before the start, and before each step
    assert execute(folder, asked=lambda: next(calls)) == EXIT_CARRY_ON
    assert execute(folder) == 0
    log = folder.log_file.read_text()
    assert "continuing after step 3 of 5" in log
    assert log.count("1 steps up to step 2 were skipped") == log.count("were skipped") == 1


def test_a_finished_run_is_not_trained_again_and_a_new_benchmark_is_evaluated(
    tmp_path, tiny, blobs
):
    folder = folder_of(tmp_path, tiny)
    assert execute(folder) == 0
    before = newest(folder).stat().st_mtime_ns, lines_of(folder)
    starts = folder.provenance_file.read_text()
    assert execute(folder) == 0
    assert folder.provenance_file.read_text() == starts
    more = {**tiny, "benchmarks": {**tiny["benchmarks"], "again": str(blobs / "dark")}}
    folder.create(RunConfig(**more))
    assert execute(folder) == 0
    results = read_json(folder.results_file)["benchmarks"]
    assert list(results) == ["val", "dark", "again"]
    assert results["again"] == results["dark"]
    assert newest(folder).stat().st_mtime_ns == before[0]
    assert lines_of(folder)[: len(before[1])] == before[1]


def test_other_pictures_than_before_are_refused(tmp_path, tiny, blobs):
    folder = folder_of(tmp_path, tiny)
    assert execute(folder) == 0
    record = read_json(folder.fingerprint_file)
    record["train"]["images"] = 7
    folder.fingerprint_file.write_text(json.dumps(record))
    folder.results_file.unlink()
    assert execute(folder) == EXIT_MISTAKE
    assert "the train images have changed" in folder.status().message


def test_a_benchmark_that_is_removed_and_added_again_must_have_the_same_images(
    tmp_path, tiny, blobs
):
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none"})
    assert execute(folder) == 0

    def execute_with(**benchmarks):
        folder.create(RunConfig(**{**tiny, "cl_mode": "none", "benchmarks": benchmarks}))
        return execute(folder)

    assert execute_with(again=str(blobs / "dark")) == 0
    assert list(read_json(folder.fingerprint_file)["benchmarks"]) == ["dark", "again"]
    other = shutil.copytree(blobs / "dark", tmp_path / "other")
    next(other.rglob("*.png")).unlink()
    assert execute_with(dark=str(other), third=str(blobs / "dark")) == EXIT_MISTAKE
    assert "the dark images have changed" in folder.status().message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"cl_mode": "joint", "model_kwargs": {"class_token": False, "global_pool": "avg"}},
            "has no class token: the mean of its patches stands for the picture",
        ),
        ({"cl_mode": "joint", "lambda_weight": 0.0}, "no contrastive loss is computed"),
        ({"cl_mode": "dense", "lambda_weight": 1.0}, "accuracies are those of a linear probe"),
        ({"cl_mode": "dense"}, None),
    ],
    ids=str,
)
def test_what_a_reader_may_not_expect_is_said_once(tmp_path, tiny, fields, said):
    kwargs = {**tiny["model_kwargs"], **fields.get("model_kwargs", {})}
    folder = folder_of(tmp_path, {**tiny, **fields, "model_kwargs": kwargs})
    assert execute(folder) == 0
    told = folder.log_file.read_text()
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
    lines = lines_of(folder)
    assert math.isfinite(lines[1]["train/loss"]), "of the step before it diverged"
    assert lines[-1]["train/loss"] == lines[-1]["train/top1"] == "NaN"
    assert [line["val/nll"] for line in lines if "val/nll" in line] == ["NaN"]
    # Plain JSON, without the words for it that only Python and JavaScript know.
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
def test_a_truncated_picture_fails_the_run_and_names_itself(tmp_path, tiny, workers):
    import shutil

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


def forked(folder, *more):
    return Forked(["train", "--run-dir", str(folder.path)], folder.path.with_name("said"), *more)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_signals_stop_a_process_and_the_same_command_carries_on(tmp_path, tiny):
    settings = {**tiny, "epochs": 40, "cl_mode": "global", "log_every": 1}
    folder = folder_of(tmp_path, settings)
    for number, code, state in (
        (signal.SIGTERM, EXIT_CARRY_ON, "cancelled"),
        (signal.SIGINT, EXIT_CARRY_ON, "cancelled"),
        (signal.SIGKILL, -signal.SIGKILL, "failed"),
    ):
        length = folder.metrics_file.stat().st_size if folder.metrics_file.exists() else 0
        process = forked(folder)
        wait_for(
            lambda length=length: (
                folder.metrics_file.exists() and folder.metrics_file.stat().st_size > length + 800
            )
        )
        assert folder.status().state == "running"
        assert folder.locked()
        process.send_signal(number)
        assert process.wait(60) == code
        assert folder.status().state == state
        assert not folder.locked()
    process = forked(folder)
    assert process.wait(120) == 0
    steps = [line["step"] for line in lines_of(folder) if "train/loss" in line]
    assert steps == list(range(1, 40 * 5 + 1)), "no line missing, none doubled"
    assert len(read_json(folder.provenance_file)["starts"]) == 4
    assert len(list(folder.checkpoint_folder.iterdir())) == 2, "the last two, and nothing else"


@pytest.mark.parametrize(
    ("number", "starting"),
    [
        (signal.SIGTERM, partial(start, start_new_session=True)),
        (signal.SIGINT, forked),  # in a session of its own as well
        (signal.SIGUSR2, forked),
    ],
    ids=["SIGTERM", "SIGINT", "SIGUSR2"],
)
def test_a_signal_to_all_processes_of_a_run_leaves_a_checkpoint(tmp_path, tiny, number, starting):
    """As Slurm sends it, and a terminal: to those that load pictures too; and more than once."""
    settings = {**tiny, "epochs": 200, "cl_mode": "dense", "log_every": 1, "workers": 2}
    folder = folder_of(tmp_path, settings)
    process = starting(folder)
    wait_for(lambda: folder.metrics_file.exists() and len(lines_of(folder)) > 12)
    os.killpg(process.pid, number)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    assert process.wait(60) == EXIT_CARRY_ON
    assert (folder.status().state, folder.status().message) == ("cancelled", number.name)
    reached = int(newest(folder).name.split("-")[1])
    assert max(line["step"] for line in lines_of(folder)) == reached


def stuck_in_a_step(arguments):
    from densevit import train

    def stuck(*_):
        print("stuck", flush=True)
        time.sleep(100)

    train.train_step = stuck
    return execute(RunFolder(Path(arguments[-1])))


def test_ctrl_c_twice_stops_at_once(tmp_path, tiny):
    folder = folder_of(tmp_path, {**tiny, "epochs": 200, "cl_mode": "none", "log_every": 1})
    process = forked(folder, stuck_in_a_step)
    wait_for(lambda: process.output() == "stuck\n")
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)  # a person's second thought
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == EXIT_CARRY_ON


def test_a_benchmark_that_is_added_leaves_its_lines_once_whenever_it_is_killed(
    tmp_path, tiny, blobs, monkeypatch
):
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "none"})
    assert execute(folder) == 0
    before, checkpoints = lines_of(folder), newest_first(folder.checkpoint_folder)
    more = {**tiny["benchmarks"], "again": str(blobs / "dark")}
    folder.create(RunConfig(**{**tiny, "cl_mode": "none", "benchmarks": more}))

    def stopped(path, _content):
        assert path == folder.results_file
        raise Stopped("test")

    monkeypatch.setattr(exam, "write_json", stopped)
    assert execute(folder) == EXIT_CARRY_ON
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
        busy = start(folder)
        assert busy.wait(60) == EXIT_CARRY_ON
        assert "another process is working on this run" in busy.stdout.read()
    assert not folder.status_file.exists()


_HOLDING = """
import os, signal, sys
from pathlib import Path
from densevit.rundir import RunFolder

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
    tmp_path, tiny, blobs
):
    folder = folder_of(tmp_path, tiny)
    assert execute(folder) == 0
    before = folder.metrics_file.read_bytes(), folder.results_file.read_text()
    folder.checkpoint_folder.rename(tmp_path / "kept")
    more = {**tiny, "benchmarks": {**tiny["benchmarks"], "again": str(blobs / "dark")}}
    folder.create(RunConfig(**more))
    assert execute(folder) == EXIT_MISTAKE
    assert "its checkpoint is gone" in folder.status().message
    assert (folder.metrics_file.read_bytes(), folder.results_file.read_text()) == before
    (tmp_path / "kept").rename(folder.checkpoint_folder)
    folder.results_file.unlink()
    folder.metrics_file.write_bytes(before[0][:100])
    assert execute(folder) == EXIT_MISTAKE
    assert "has lost lines" in folder.status().message
    assert folder.metrics_file.read_bytes() == before[0][:100]


def test_a_broken_picture_ends_a_run_with_loading_processes(tmp_path, tiny, blobs):
    """They leave signals to the run, and Python waits for them at its end."""
    shutil.copytree(blobs, tmp_path / "data")
    broken = next((tmp_path / "data" / "train").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    folder = folder_of(tmp_path, {**tiny, "data_dir": str(tmp_path / "data"), "workers": 2})
    command = [sys.executable, "-m", "densevit", "train", "--run-dir", str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == EXIT_MISTAKE, done.stderr
    assert broken.name in folder.status().message
