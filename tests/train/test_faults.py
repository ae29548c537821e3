"""Runs that are killed at any moment, repeatedly, and end as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from forked import SERVER, be_oneself
from holding import hold, let_go
from pictures import write_images
from tiny import without_machine

from densevit.config.identity import identity
from densevit.config.run_config import RunConfig
from densevit.runs.checkpoint import load
from densevit.runs.checkpoint_files import newest_first
from densevit.runs.directory import RunFolder
from densevit.utils.errors import EXIT_MISTAKE
from densevit.utils.files import read_json

# Two epochs of 18 steps: long enough to be killed in.
SETTINGS = {
    "dataset": "many",
    "model_kwargs": {
        "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2,
    },
    "batch_size": 8, "epochs": 2, "warmup_epochs": 1, "learning_rate": 1e-3, "workers": 1,
    "queue_size": 400, "sampled_patches": 5, "dense_dim": 32, "projection_hidden_dim": 64,
    "log_every": 5, "health_every": 10, "device": "cpu", "checkpoint_minutes": 1e-6,
}  # fmt: skip
MODES = {
    "none": ({"cl_mode": "none", "drop_path": 0.1, "mixup": 0.2, "precision": "fp16"}, 2),
    "global": ({"cl_mode": "global", "precision": "bf16"}, 2),
    "dense": ({"cl_mode": "dense", "sampling_strategy": "diverse", "learnable_temp": True}, 3),
    "joint": (
        {"cl_mode": "joint", "key_encoder": "momentum", "momentum": 0.9, "grad_accumulation": 2,
         "workers": 2}, 3,
    ),
}  # fmt: skip


def child(path, die_in_write=0, before=True):
    """Execute a run that dies when it writes its n-th checkpoint, before or after renaming the
    file."""
    from held.sitecustomize import held

    from densevit.runs import checkpoint
    from densevit.train import loop
    from densevit.train.execute import execute

    torch.set_num_threads(1)
    be_oneself()
    boundary = held(loop)

    def wait_for_writer(trainer):
        while die_in_write and trainer.checkpoints.busy:  # so that each step is written
            time.sleep(0.001)
        boundary(trainer)

    loop._stop_or_save = wait_for_writer
    real, count = checkpoint.put, 0

    def put(temporary, target):
        nonlocal count
        count += 1
        if count == die_in_write and before:
            os.killpg(0, signal.SIGKILL)
        real(temporary, target)
        if count == die_in_write:
            os.killpg(0, signal.SIGKILL)

    checkpoint.put = put
    os._exit(execute(RunFolder(path)))


def started(folder, *arguments):
    process = SERVER.Process(target=child, args=(folder.path, *arguments))
    process.start()
    return process


def finished(folder):
    process = started(folder)
    process.join(300)
    assert process.exitcode == 0, folder.log_file.read_text()
    return folder


def folder_of(tmp_path, name, settings):
    folder = RunFolder(tmp_path / name)
    folder.create(RunConfig(**settings))
    return folder


def all_bits(folder):
    """Return everything in a checkpoint, by name."""
    config = folder.config()
    state = load(folder.checkpoint_folder, identity(config).run)
    found = {}

    def walk(value, name):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}.{key}")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                walk(item, f"{name}[{number}]")
        elif name not in (".seconds", ".metrics_bytes"):  # depends on the machine, not the run
            found[name] = value

    walk(state, "")
    return found


def lines(folder):
    """Return the current lines of metrics.jsonl, without values that depend on the machine."""
    text = folder.metrics_file.read_text()
    assert text.endswith("\n")
    return [without_machine(json.loads(line)) for line in text.splitlines()]


def assert_same(folder, whole):
    assert lines(folder) == lines(whole)
    got, wanted = all_bits(folder), all_bits(whole)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        same = (
            torch.equal(got[name], value)
            if isinstance(value, torch.Tensor)
            else (got[name] == value)
        )
        assert same, name
    results = [read_json(f.results_file)["benchmarks"] for f in (folder, whole)]
    assert results[0] == results[1]


def kill_once(folder, chance, last):
    """Start the run and kill it at a random moment after a new checkpoint, before its step `last`."""
    hold(folder.path.parents[1], last)
    before = newest_first(folder.checkpoint_folder)[:1]
    process = started(folder)
    deadline = time.monotonic() + 240
    while newest_first(folder.checkpoint_folder)[:1] == before:
        assert process.is_alive(), folder.log_file.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.1))  # the test needs a random moment
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    let_go(folder.path.parents[1])


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory):
    """Return a function that returns the settings of a mode's run, on images that all runs share."""
    root = tmp_path_factory.mktemp("many")
    for seed, (split, count) in enumerate({"train": 50, "val": 10, "dark": 5}.items()):
        write_images(root / split, {"red": count, "green": count, "blue": count}, seed)
    places = {"data_dir": str(root), "benchmarks": {"dark": str(root / "dark")}}
    return lambda mode: {**SETTINGS, **places, **MODES[mode][0]}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, settings_of):
    """Return a function that returns the uninterrupted run of a mode."""

    @cache
    def run(mode):
        return finished(folder_of(tmp_path_factory.mktemp("whole"), mode, settings_of(mode)))

    return run


# `joint` contains the parts of the two in between.
LONG = [pytest.param(m, marks=pytest.mark.slow) if m in ("global", "dense") else m for m in MODES]


@pytest.mark.parametrize("mode", LONG)
def test_a_run_that_is_killed_ends_with_the_same_bits(tmp_path, whole_run, settings_of, mode):
    kills = MODES[mode][1]
    folder, chance = folder_of(tmp_path / "runs", "killed", settings_of(mode)), random.Random(7)
    for number in range(1, kills + 1):
        kill_once(folder, chance, 36 * number // (kills + 1))
    finished(folder)
    assert_same(folder, whole_run(mode))
    assert len(read_json(folder.provenance_file)["starts"]) == kills + 1


@pytest.mark.parametrize(("write", "before"), [(1, True), (2, False), (4, True)])
def test_a_run_that_dies_while_it_writes_a_checkpoint(
    tmp_path, whole_run, settings_of, write, before
):
    folder = folder_of(tmp_path, "killed", settings_of("dense"))
    process = started(folder, write, before)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    left = list(folder.checkpoint_folder.glob(".step.*"))
    assert len(left) == before, "it died in the middle of a write"
    finished(folder)
    assert_same(folder, whole_run("dense"))
    assert len(list(folder.checkpoint_folder.iterdir())) == 2


def test_the_newest_checkpoint_is_damaged_and_the_run_ends_as_if_it_were_not(
    tmp_path, whole_run, settings_of
):
    folder = folder_of(tmp_path, "damaged", settings_of("dense"))
    process = started(folder, 4, False)
    process.join(300)
    newest, before = newest_first(folder.checkpoint_folder)[:2]
    newest.write_bytes(newest.read_bytes()[:5000])
    finished(folder)
    log = folder.log_file.read_text()
    assert f"{newest}: is damaged: its content is not what was written" in log
    assert f"continuing from the checkpoint before it, {before.name}" in log
    assert_same(folder, whole_run("dense"))


def child_that_loses(path, picture, kept):
    """Execute a run during whose fourth step a training image is moved away."""
    from densevit.train import loop

    real = loop.train_step

    def train_step(engine, batch, weight, step, *more):
        if step == 3:
            picture.rename(kept)
        return real(engine, batch, weight, step, *more)

    loop.train_step = train_step
    child(path)


def test_a_picture_that_disappears_during_training_is_named_and_the_run_carries_on(
    tmp_path, tiny, blobs
):
    settings = {**tiny, "cl_mode": "dense", "epochs": 4, "workers": 1, "log_every": 1}
    shutil.copytree(blobs, tmp_path / "data")
    settings |= {"data_dir": str(tmp_path / "data"), "benchmarks": {}}
    whole = finished(folder_of(tmp_path, "whole", settings))
    folder = folder_of(tmp_path, "run", settings)
    gone = tmp_path / "data" / "train" / "green" / "2.png"
    process = SERVER.Process(
        target=child_that_loses, args=(folder.path, gone, tmp_path / "kept.png")
    )
    process.start()
    process.join(300)
    assert process.exitcode == EXIT_MISTAKE
    assert folder.status().message.startswith(f"{gone}: cannot be read as an image: ")
    assert newest_first(folder.checkpoint_folder), "what it carries on from"
    (tmp_path / "kept.png").rename(gone)
    finished(folder)
    assert_same(folder, whole)


def child_of_nobody(path, said):
    """Run the command as a user who, unlike root, may not write everywhere."""
    from densevit.cli.main import main

    sys.stderr = open(said, "w")  # noqa: PTH123, SIM115, ends with the process
    if os.geteuid() == 0:
        os.setuid(65534)
    code = main(["train", "--run-dir", str(path)])
    sys.stderr.flush()
    os._exit(code)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, tiny):
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)  # noqa: PTH101
        folder = folder_of(Path(name), "run", tiny)
        folder.path.chmod(0o555)
        process = SERVER.Process(target=child_of_nobody, args=(folder.path, tmp_path / "said"))
        process.start()
        process.join(60)
        assert process.exitcode == EXIT_MISTAKE
        said = (tmp_path / "said").read_text()
        assert said.splitlines()[-1] == f"densevit: {folder.lock_file}: Permission denied"
        folder.path.chmod(0o755)


@pytest.mark.slow
def test_twenty_kills_of_two_processes(tmp_path):
    """As `test_a_run_that_is_killed_ends_with_the_same_bits`; both processes die at random moments."""
    settings = {**SETTINGS, "dataset": "shapes", "batch_size": 64, "queue_size": 3000,
                "cl_mode": "joint", "key_encoder": "momentum", "momentum": 0.9, "epochs": 12,
                "workers": 1, "checkpoint_minutes": 0.002}  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", "-m", "densevit", "train", "--run-dir"]  # fmt: skip
    whole, folder = (folder_of(tmp_path, name, settings) for name in ("whole", "killed"))

    def start(run):
        return subprocess.Popen(
            [*command, str(run.path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(process):
        """Kill torchrun and its descendants, which have their own sessions."""
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        for pid in (process.pid, *map(int, found.stdout.split())):
            os.kill(pid, signal.SIGKILL)
        process.wait()

    assert start(whole).wait(600) == 0
    chance, kills = random.Random(3), 0
    while kills < 20 and not folder.results_file.exists():
        held = folder.metrics_file.stat().st_size if folder.metrics_file.exists() else 0
        process = start(folder)
        while process.poll() is None and (
            not folder.metrics_file.exists() or folder.metrics_file.stat().st_size == held
        ):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 1.0))
        if process.poll() is None:
            kills += 1
            kill(process)
        while folder.locked():
            time.sleep(0.02)
    assert start(folder).wait(600) == 0
    assert kills == 20
    assert_same(folder, whole)
