"""Sweeps on a real Ray: the same runs and metrics as elsewhere, and the effect of faults."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import forked
import pytest
from holding import ENVIRONMENT
from raylab import HEAD, OTHER, Sweep, kill, marked, wait_for
from spans import most_at_once

from densevit.runs.metrics_file import read_metrics
from densevit.utils.files import read_json

pytestmark = pytest.mark.ray


def numbers(folder):
    """Return the benchmarks and the last loss of a run, to the last digit."""
    losses = [
        line["train/loss"] for line in read_metrics(folder.metrics_file)[0] if "train/loss" in line
    ]
    return read_json(folder.results_file)["benchmarks"], losses[-1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, blobs):
    """Return the runs of `long`, trained one after another."""
    from tiny import tiny_run

    made = Sweep(tmp_path_factory.mktemp("local") / "long", {**tiny_run(blobs), **LONG}, **CELLS)
    words = "run", made.file, "--launcher", "local", "--jobs", "2", "--no-tracking"
    done = forked.done([*words, "--outputs", made.outputs], forked.sweep)
    assert done.returncode == 0, done.stderr
    return {folder.path.name: numbers(folder) for folder in made.folders}


# Thirty steps, with a checkpoint after each fifth.
LONG = {"epochs": 6}
CELLS = {"grid": {"cl_mode": ["none", "dense"]}, "seeds": 2}
TWO_SLOTS = {"max_concurrent": 2}  # each imports once and trains one run after another


def check_all(runs, undisturbed):
    assert {f.path.name: numbers(f) for f in runs.folders} == undisturbed


def test_ids_and_numbers_are_those_of_the_local_launcher(sweep, undisturbed):
    runs = sweep("whole", LONG, ray=TWO_SLOTS, **CELLS)
    told = runs.run()
    assert "4 runs in 2 cells: 0 finished before, 4 to run" in told
    check_all(runs, undisturbed)
    assert {start["command"].split()[0] for f in runs.folders for start in runs.starts(f)} == {"densevit"}  # fmt: skip
    assert "4 finished before, 0 to run" in runs.run()
    assert not list((runs.outputs / "sweeps/whole/ray").iterdir()), "nothing of Ray's is left"


def test_killed_processes_are_started_again_and_no_number_changes(sweep, undisturbed):
    runs = sweep("worker", LONG, ray=TWO_SLOTS, **CELLS)
    runs.hold(8)
    command = runs.start()
    folder, pid = wait_for(lambda: runs.going(8), "training")[0]
    kill([pid])
    wait_for(lambda: len(runs.starts(folder)) == 2, "its second start")
    pid = wait_for(lambda: [p for f, p in runs.going(8) if p != pid and f == folder])[0]
    kill([pid])
    runs.let_go()
    assert command.wait(400) == 0, command.stdout.read()
    assert len(runs.starts(folder)) == 3, "it failed twice and then succeeded"
    check_all(runs, undisturbed)


def test_a_run_that_fails_once_too_often_is_failed_and_stops_no_other(sweep):
    runs = sweep("failing", ray={"max_failures": 1}, grid={"cl_mode": ["none", "global"]})
    bad = runs.folders[0]
    bad.metrics_file.mkdir(parents=True)
    told = runs.run(code=1)
    assert runs.states() == ["failed", "finished"]
    assert len(runs.starts(bad)) == 2
    assert "metrics.jsonl" in told
    assert "1 of 2 runs are not finished" in told
    bad.metrics_file.rmdir()
    runs.run("retry", "--failed", "--no-tracking")
    assert runs.states() == ["finished", "finished"]


def test_a_mistake_is_not_tried_again(sweep):
    runs = sweep("mistaken", {"device": "cuda"}, grid={"cl_mode": ["none"]})
    assert "torch sees no GPU here" in runs.run(code=1)
    assert len(runs.starts(runs.folders[0])) == 1


def test_a_node_is_lost(sweep, cluster, undisturbed):
    runs = sweep("node", LONG, **CELLS)
    runs.hold(8)
    command = runs.start()
    there = cluster.marks[OTHER]
    lost = wait_for(
        lambda: [f for f, pid in runs.going() if pid in marked(there)], "training on it"
    )
    cluster.kill(OTHER)
    runs.let_go()
    try:
        assert command.wait(400) == 0, command.stdout.read()
    finally:
        cluster.start(OTHER, "--num-cpus", "2")
    assert all(len(runs.starts(folder)) > 1 for folder in lost)
    check_all(runs, undisturbed)


def starters(cluster):
    """Return our processes on the cluster that are no runs."""
    found = []
    for pid in (pid for mark in cluster.marks.values() for pid in marked(mark)):
        with suppress(OSError):  # one that ends in the meantime
            if b"launch.warm" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_the_driver_is_killed_and_the_command_repeated(sweep, cluster, undisturbed):
    runs = sweep("driver", LONG, ray=TWO_SLOTS, **CELLS)
    for folder in runs.folders[2:]:
        runs.hold(8, folder)
    command = runs.start()
    wait_for(lambda: sum(f.results_file.exists() for f in runs.folders), "the first to finish")
    going = wait_for(lambda: runs.going(8), "training")
    done = [folder for folder in runs.folders if folder.results_file.exists()]
    before = [folder.results_file.stat().st_mtime_ns for folder in done]
    command.kill()
    wait_for(lambda: not any(folder.locked() for folder in runs.folders), "the runs' end")
    assert all(folder.recorded_status().state in ("cancelled", "finished") for folder, _ in going)
    wait_for(lambda: not starters(cluster), "the end of what starts runs")
    runs.let_go()
    told = runs.run()
    assert f"{len(done)} finished before" in told or f"{len(done) + 1} finished before" in told
    assert [folder.results_file.stat().st_mtime_ns for folder in done] == before
    check_all(runs, undisturbed)


# It has what every account of this machine has: the ports of loopback.
STRANGER = "import sys, ray._raylet as ray; print(ray.GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None))"


def asked_by_a_stranger(mark, home):
    """Return what a process without the token gets from the Ray that a command has started."""
    lines = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in marked(mark)]
    (address, *_) = re.findall(r"--gcs-address[= ](127[\d.]+:\d+)", "\n".join(lines))
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", STRANGER, address]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_stopped_at_the_keyboard_it_leaves_checkpoints_and_no_process(
    tmp_path, tiny, number, monkeypatch
):
    monkeypatch.setitem(ENVIRONMENT, "HOME", str(tmp_path))
    runs = Sweep(tmp_path / "own", {**tiny, "epochs": 3}, grid={"cl_mode": ["none", "global"]})
    runs.hold(8)
    command = runs.start()
    wait_for(runs.going, "training")
    stranger = asked_by_a_stranger(runs.mark, tmp_path)
    assert "AuthenticationError" in stranger.stderr, "else it could run functions as this user"
    assert not (tmp_path / ".ray").exists(), "the token is in no file"
    command.send_signal(number)
    told = command.communicate(timeout=600)[0]
    assert command.returncode == 75, told
    assert "run the same command to resume" in told
    assert "cancelled" in runs.states()
    assert all(list(f.checkpoint_folder.iterdir()) for f in runs.folders if runs.starts(f))
    wait_for(lambda: not marked(runs.mark), "the end of all processes")


def test_a_token_that_others_can_read_is_refused(sweep, cluster):
    theirs = sweep("theirs", grid={"cl_mode": ["none"]})
    cluster.token.chmod(0o644)
    try:
        told = theirs.run(code=2)
    finally:
        cluster.token.chmod(0o600)
    assert f"{cluster.token}: other users can read this token" in told
    assert not theirs.outputs.exists()


def test_one_run_is_cancelled_and_the_others_go_on(sweep):
    runs = sweep("cancelled", {"epochs": 3}, grid={"cl_mode": ["none", "global"]})
    runs.hold(8)
    command = runs.start()
    folder = wait_for(lambda: len(runs.going()) == 2 and runs.going(), "both")[0][0]
    runs.run("cancel", folder.path.name, "--yes")
    wait_for(lambda: folder.recorded_status().state == "cancelled", "the run's end")
    runs.let_go()
    assert command.wait(400) == 1
    assert sorted(runs.states()) == ["cancelled", "finished"]
    assert folder.recorded_status().state == "cancelled"
    runs.run()
    assert runs.states() == ["finished", "finished"]


def together(runs):
    """Return the largest number of runs that trained at once, from their records."""
    return most_at_once(
        [(runs.starts(f)[0]["time"], f.recorded_status().updated) for f in runs.folders]
    )


@pytest.mark.parametrize(("share", "most"), [(0.5, 2), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_runs_share_a_gpu(sweep, share, most):
    parts = {"ray": {"gpus_per_run": share, "cpus_per_run": 0.5}, "seeds": 4}
    runs = sweep(f"share{most}", grid={"cl_mode": ["none"]}, **parts)
    runs.hold(3)
    command = runs.start()
    wait_for(lambda: len(runs.going(3)) == most, "as many as there is room for")
    runs.let_go()
    assert command.wait(400) == 0, command.stdout.read()
    assert together(runs) == most


@pytest.mark.slow
def test_no_more_at_once_than_asked_for(sweep):
    runs = sweep("few", ray={"max_concurrent": 1}, grid={"cl_mode": ["none"]}, seeds=3)
    runs.run()
    assert together(runs) == 1


RULE = {"scheduler": "asha", "grace_epochs": 2, "reduction": 2, "allow_biased": True}


def test_the_planted_bad_cells_are_stopped_and_the_good_one_is_kept(sweep):
    rates = [1e-3, 1e-9, 2e-9, 3e-9]
    runs = sweep("early", {"epochs": 8}, grid={"learning_rate": rates}, early_stop=RULE,
                 ray={"max_concurrent": 1})  # fmt: skip
    told = runs.run()
    assert runs.states() == ["finished", "stopped", "stopped", "stopped"]
    assert "0/1 (1 stopped)" in told
    assert "1 of 4 planned runs have results; 3 stopped" in told
    assert not any(f.results_file.exists() for f in runs.folders[1:])
    why = runs.folders[1].recorded_status().message
    assert why.startswith("asha: val/top1 ")
    assert "after epoch 2 " in why
    steps = [f.recorded_status().step for f in runs.folders]
    assert "1 finished before, 3 stopped early, 0 to run" in runs.run()
    assert [f.recorded_status().step for f in runs.folders] == steps
    assert why in runs.run("status")


def test_a_rule_goes_on_where_a_stopped_command_left_it(sweep):
    rates = [1e-3, 1e-9, 2e-9]
    runs = sweep("carried", {"epochs": 6}, grid={"learning_rate": rates}, early_stop=RULE,
                 ray={"max_concurrent": 1})  # fmt: skip
    runs.hold(8, runs.folders[1])
    command = runs.start()
    wait_for(runs.folders[0].results_file.exists, "the first to finish")
    wait_for(lambda: runs.going(8), "the second")
    command.send_signal(signal.SIGINT)
    assert command.wait(400) == 75, command.stdout.read()
    runs.let_go()
    told = runs.run()
    assert "1 finished before" in told
    assert runs.states() == ["finished", "stopped", "stopped"]


@pytest.mark.slow
def test_a_stopped_run_is_trained_on_where_no_rule_stops_it(sweep, tmp_path):
    runs = sweep("first", {"epochs": 6}, grid={"learning_rate": [1e-3, 1e-9]}, early_stop=RULE,
                 ray={"max_concurrent": 1})  # fmt: skip
    runs.run()
    assert runs.states() == ["finished", "stopped"]
    without = sweep("second", {"epochs": 6}, grid={"learning_rate": [1e-3, 1e-9]})
    without.outputs = runs.outputs
    assert "1 finished before, 1 to run" in without.run()
    assert without.states() == ["finished", "finished"]


def test_optuna_proposes_from_what_the_first_round_reached(sweep):
    space = {"learning_rate": {"loguniform": [1e-6, 1e-2]}}
    search = {"space": space, "samples": 4, "round": 2, "method": "optuna", "seed": 1}
    runs = sweep("found", search=search, ray={"max_concurrent": 1})
    told = runs.run()
    assert "2 runs in 2 cells: 0 finished before, 2 to run" in told
    assert "4 runs in 4 cells: 2 finished before, 2 to run" in told
    kept = runs.outputs / "sweeps/found/search.json"
    rows = read_json(kept)["rows"]
    kept.unlink()
    assert "4 finished before, 0 to run" in runs.run()
    assert read_json(kept)["rows"] == rows, "the same file and results give the same values"


def test_processes_on_both_nodes_train_one_run(sweep, cluster):
    runs = sweep("gang", LONG, grid={"cl_mode": ["dense"]}, resources={"nodes": 2, "cpus": 2})
    runs.hold(8)
    command = runs.start()
    wait_for(runs.going, "training")
    command.send_signal(signal.SIGINT)
    assert command.wait(400) == 75, command.stdout.read()
    assert runs.states() == ["cancelled"]
    first = runs.folders[0].recorded_status().step
    runs.let_go()
    runs.run()
    assert runs.states() == ["finished"]
    assert 0 < first < runs.folders[0].recorded_status().steps


@pytest.mark.parametrize(
    ("ray", "resources", "told"),
    [({"address": f"{HEAD}:9"}, {}, "no Ray answers at"),
     ({"address": "nowhere.invalid:6379"}, {}, "no Ray answers at"),
     ({"gpus_per_run": 2}, {}, "needs 2 x 0.5 CPUs and 1 GPUs, and the Ray cluster has"),
     ({}, {"nodes": 3, "cpus": 2}, "needs 3 x 2 CPUs and 0 GPUs")],
    ids=["port", "host", "gpus", "nodes"],
)  # fmt: skip
def test_what_cannot_be_is_told_before_anything_is_made(sweep, ray, resources, told):
    runs = sweep("impossible", ray=ray, resources=resources, grid={"cl_mode": ["none"]})
    assert told in runs.run(code=2)
    assert not (runs.outputs / "runs").exists()
