"""Several processes on one run: the same metrics as with one process, and a common stop."""

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import submitit
import torch
from forked import Forked, Ranks
from holding import ENVIRONMENT, hold, let_go
from tiny import tiny_run, without_machine

from densevit.config.identity import identity
from densevit.config.run_config import RunConfig
from densevit.runs.checkpoint import load
from densevit.runs.checkpoint_files import newest_first
from densevit.runs.directory import RunFolder, run_folder
from densevit.runs.metrics_file import read_metrics
from densevit.train.execute import execute
from densevit.utils.errors import EXIT_CARRY_ON, EXIT_MISTAKE
from densevit.utils.files import read_json

TORCHRUN = ["--standalone", "--nproc-per-node", "2", "-m", "densevit"]
LOOKS = {
    "watched": ["knn", "dark"], "watch_every": 1, "watch_samples": 7, "probes": ["knn", "knn-patch"],
}  # fmt: skip
MODES = [
    {"cl_mode": "none", "grad_accumulation": 2, "epochs": 2, **LOOKS},
    {"cl_mode": "global", "key_encoder": "momentum", "momentum": 0.9},
    {"cl_mode": "dense", "sampling_strategy": "hardest", "query_patches": 5},
    {"cl_mode": "joint", "correspondence_features": "geometry", "learnable_temp": True,
     "sampling_strategy": "diverse"},
]  # fmt: skip


def folder_of(tmp_path, settings, name):
    folder = RunFolder(tmp_path / name)
    folder.create(RunConfig(**settings))
    return folder


def train_command(folder):
    return ["train", "--run-dir", str(folder.path)]


def _torchrun(arguments):
    """Run `python -m torch.distributed.run`; its processes are not forked from it."""
    from torch.distributed.run import main

    main(arguments)


def torchrun(arguments, said):
    path = {"PYTHONPATH": ENVIRONMENT["PYTHONPATH"]}  # its processes can be held at a step
    return Forked([*TORCHRUN, *arguments], said, _torchrun, **path)


def said_of(folder):
    return folder.path.with_name(f"{folder.path.name}-said")


def one_process(folder):
    return Forked(train_command(folder), said_of(folder))


def two_processes(folder, work=None):
    """Start two processes as torchrun does; torchrun itself has tests below."""
    more = () if work is None else (work,)
    return Ranks(train_command(folder), said_of(folder), *more)


def final(folder):
    return load(folder.checkpoint_folder, identity(folder.config()).run)


def numbers(folder):
    """Return the logged metrics that depend on the network."""
    lines, _ = read_metrics(folder.metrics_file)
    kept = [without_machine(line) for line in lines]
    return [(line.pop("step"), line) for line in kept]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_two_processes_learn_what_one_learns(tmp_path, tiny, mode):
    # At this learning rate, rounding errors do not grow over the steps.
    settings = {**tiny, "epochs": 1, **mode, "learning_rate": 1e-4, "log_every": 1}
    one, two = (folder_of(tmp_path, settings, name) for name in ("one", "two"))
    assert execute(one) == 0
    process = two_processes(two)
    assert process.wait() == [0, 0], process.output()
    assert two.status().state == "finished"
    # Written once, by one of the processes.
    assert len(read_json(two.provenance_file)["starts"]) == 1
    got, wanted = numbers(two), numbers(one)
    assert [step for step, _ in got] == [step for step, _ in wanted]
    for (step, a), (_, b) in zip(got, wanted, strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=2e-4), step
    mine, theirs = final(two), final(one)
    for name, value in theirs["model"].items():
        if not name.endswith("qkv.bias"):  # that of the keys has no gradient except rounding
            torch.testing.assert_close(mine["model"][name], value, rtol=1e-3, atol=1e-4)
    for name, value in theirs.get("contrast", {}).items():
        torch.testing.assert_close(mine["contrast"][name], value, rtol=1e-3, atol=1e-3)
    results = [read_json(f.results_file)["benchmarks"] for f in (two, one)]
    assert list(results[0]) == list(results[1]) == ["val", "dark", *mode.get("probes", [])]
    for name in results[1]:
        rows, expected = (pq.read_table(f.predictions_file(name)).to_pylist() for f in (two, one))
        assert [r["sample"] for r in rows] == [r["sample"] for r in expected], "each once"
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-3)


def wait_for(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert process.poll() is None, "it has ended"
        time.sleep(0.02)


def children(process):
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "densevit"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return sorted(int(pid) for pid in found.stdout.split())


def three_epochs(tmp_path, tiny, name):
    settings = {**tiny, "cl_mode": "dense", "epochs": 3, "log_every": 1, "workers": 1}
    return folder_of(tmp_path / "runs", settings, name)


def bits(folder):
    state = final(folder)
    return {f"{p}.{n}": v for p in ("model", "contrast") for n, v in state[p].items()}


def assert_stopped(folder, number):
    """Check that both stopped at the same step, with a checkpoint of it."""
    status = folder.status()
    assert (status.state, status.message) == ("cancelled", number.name)
    assert 0 < status.step < status.steps
    reached = int(newest_first(folder.checkpoint_folder)[0].name.split("-")[1])
    lines, _ = read_metrics(folder.metrics_file)
    assert max(line["step"] for line in lines) == reached


@contextmanager
def in_the_middle(tmp_path, start, folder):
    """Hold the processes of a run before the ninth step while the test acts on it."""
    hold(tmp_path, 8)
    process = start(folder)
    wait_for(lambda: folder.progress().get("step") == 8, process)
    yield process
    let_go(tmp_path)


def test_a_signal_to_one_process_stops_both_at_the_same_step_and_they_resume(tmp_path, tiny):
    folder, whole = (three_epochs(tmp_path, tiny, name) for name in ("stopped", "whole"))
    with in_the_middle(tmp_path, two_processes, folder) as process:
        process.ranks[1].send_signal(signal.SIGUSR2)
    assert process.wait() == [EXIT_CARRY_ON, EXIT_CARRY_ON], process.output()
    assert_stopped(folder, signal.SIGUSR2)
    for run in (folder, whole):
        process = two_processes(run)
        assert process.wait() == [0, 0], process.output()
    assert numbers(folder) == numbers(whole)
    got = bits(folder)
    for name, value in bits(whole).items():
        assert torch.equal(got[name], value), name


def test_torchrun_takes_flags_and_a_signal_to_one_process_stops_both_at_the_same_step(
    tmp_path, tiny
):
    """The first start of a run, whose folder does not exist when the processes begin."""
    settings = {**tiny, "cl_mode": "dense", "epochs": 2, "log_every": 1}
    folder = run_folder(tmp_path, identity(RunConfig(**settings)).run)
    assert not folder.path.exists()

    def start(_):
        flags = ["--outputs", str(tmp_path), "--no-tracking"]
        for name, value in settings.items():
            text = value if isinstance(value, str) else json.dumps(value)
            flags += [f"--{name.replace('_', '-')}", text]
        return torchrun(["train", *flags], tmp_path / "said")

    with in_the_middle(tmp_path, start, folder) as process:
        os.kill(children(process)[1], signal.SIGTERM)
    # torchrun ends with 1 whatever its processes end with; its report has their exit codes.
    assert process.wait() == 1
    assert f"exitcode  : {EXIT_CARRY_ON}" in process.output()
    assert_stopped(folder, signal.SIGTERM)
    assert len(read_json(folder.provenance_file)["starts"]) == 1


def test_submitit_starts_the_processes_of_a_run(tmp_path, tiny):
    """With its local launcher, in an environment like that of a Slurm job."""
    settings = {**tiny, "cl_mode": "global", "learning_rate": 1e-4, "epochs": 1}
    one, two = (folder_of(tmp_path, settings, name) for name in ("one", "two"))
    assert execute(one) == 0
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(tasks_per_node=2, timeout_min=5)
    assert executor.submit(execute, two).results() == [0, 0]
    for (_, a), (_, b) in zip(numbers(two), numbers(one), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=2e-4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, blobs):
    """Return a run of one process that nothing has stopped."""
    settings = {**tiny_run(blobs), "cl_mode": "dense", "learning_rate": 1e-4, "epochs": 3}
    folder = folder_of(tmp_path_factory.mktemp("undisturbed"), settings, "run")
    assert execute(folder) == 0
    return folder


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_carries_on_with_another_number_of_processes(tmp_path, undisturbed, first):
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.create(undisturbed.config())
    starts = {1: one_process, 2: two_processes}
    with in_the_middle(tmp_path, starts[first], folder) as process:
        (process.ranks[0] if first == 2 else process).send_signal(signal.SIGTERM)
    process.wait()
    assert folder.status().state == "cancelled"
    process = starts[3 - first](folder)
    assert process.wait() in (0, [0, 0]), process.output()
    for (step, a), (_, b) in zip(numbers(folder), numbers(undisturbed), strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=5e-4), step


def connected_already(arguments):
    from torch import distributed

    distributed.init_process_group("gloo")
    code = execute(RunFolder(Path(arguments[-1])))
    distributed.barrier()
    return code


def test_processes_that_are_connected_already_stay_so(tmp_path, tiny):
    """Ray Train starts them in this way."""
    folder = folder_of(tmp_path, {**tiny, "cl_mode": "global", "epochs": 1}, "run")
    process = two_processes(folder, connected_already)
    assert process.wait() == [0, 0], process.output()
    assert folder.status().state == "finished"
    assert len(read_json(folder.provenance_file)["starts"]) == 1


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path, tiny):
    folder = folder_of(tmp_path, {**tiny, "batch_size": 7}, "odd")
    process = two_processes(folder)
    assert process.wait() == [EXIT_MISTAKE, EXIT_MISTAKE], process.output()
    told = "batch_size: 7 cannot be shared evenly by 2 processes with grad_accumulation 1"
    assert folder.status().message == told
