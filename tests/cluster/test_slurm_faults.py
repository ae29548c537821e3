"""Faults of a cluster.

After each one, every run is finished once with the metrics of an uninterrupted run, or it is
reported with its cause. These tests break or change the cluster, so they run alone.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from holding import ENVIRONMENT
from lab import (
    COMMAND,
    ROOT,
    TWO,
    Sweep,
    check_all,
    kill,
    parent,
    processes,
    script,
    slurm,
    wait_for,
    whole,
)

pytestmark = [pytest.mark.cluster, pytest.mark.breaks]


@pytest.fixture(autouse=True)
def whole_cluster(cluster):
    """Cancel the jobs of earlier tests; if the cluster does not become idle, start a new one."""
    try:
        for job in set(slurm("squeue", "-h", "-o", "%F").split()):
            slurm("scancel", job)
        wait_for(whole, "a whole cluster")
    except (AssertionError, subprocess.SubprocessError) as seen:
        warnings.warn(str(seen), stacklevel=1)
        script("stop", "--wipe", check=True)
        script("start", check=True)


def test_preempted_by_a_partition_of_higher_priority(long_runs, undisturbed):
    runs = long_runs("preempted", resources={"cpus": 4, "mem": "3000M", "hours": 1})
    runs.hold(23)
    runs.submit("--no-canary")
    runs.wait_training(2, steps=20)
    urgent = slurm("sbatch", "--parsable", "-p", "urgent", "-N", "2", "-c", "4", "--mem=3000M", "--output=/dev/null", "--wrap", "srun true")  # fmt: skip
    wait_for(lambda: slurm("sacct", "-n", "-X", "-j", urgent, "-o", "State").strip() == "COMPLETED")
    runs.let_go()
    assert runs.wait() == ["finished", "finished"]
    check_all(runs, undisturbed)
    for folder in runs.folders():
        assert runs.ends(folder) == ["preempted", "finished"]


def test_a_node_dies(long_runs, undisturbed):
    runs = long_runs("node", resources={"cpus": 4, "mem": "3000M", "hours": 1})
    runs.hold(23)
    runs.submit("--no-canary")
    runs.wait_training(2, steps=20)
    victim = next(f for f in runs.folders() if _node(runs, f) == "node1")
    job = runs.job(victim)
    raw = slurm("squeue", "-h", "-j", job, "-o", "%A")
    script("daemon", "kill", "slurmd-node1", check=True)
    try:
        # The machine and everything on it is lost: first the daemons that could inform the
        # controller.
        keepers = _pids(f"slurmstepd: .{raw}[.]")
        assert len(keepers) >= 2
        for pid in [*keepers, *_below(keepers)]:
            kill(pid)
        wait_for(lambda: "down" in slurm("sinfo", "-h", "-N", "-n", "node1", "-o", "%T"))
        assert "failed" not in runs.states()
        runs.let_go()  # the other run frees its node for this one
        wait_for(lambda: runs.ends(victim)[0] == "node")
    finally:
        script("daemon", "start", "slurmd-node1", check=True)
    assert runs.wait() == ["finished", "finished"]
    assert runs.ends(victim) == ["node", "finished"]
    check_all(runs, undisturbed)


def _node(runs, folder):
    return json.loads(folder.attempts_file.read_text())["attempts"][-1]["node"]


def _pids(pattern):
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _below(pids):
    """Return the descendants of some processes."""
    found = []
    for pid in pids:
        children = subprocess.run(
            ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
        )
        mine = [int(child) for child in children.stdout.split()]
        found += [*mine, *_below(mine)]
    return found


def test_the_controller_is_restarted_while_runs_are_submitted(sweep):
    runs = sweep("controller", **TWO)
    # The controller does not hear of their end: it takes them for lost and restarts them.
    wait_for(lambda: slurm("squeue", "-h") == "")
    script("daemon", "kill", "slurmctld", check=True)
    try:
        submitting = subprocess.Popen(
            runs.command("run", runs.file, "--no-tracking"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        status = runs.status()
        assert {run["state"] for run in status["runs"]} <= {"pending", "unknown"}
    finally:
        script("daemon", "start", "slurmctld", check=True)
    told, _ = submitting.communicate(timeout=600)
    assert submitting.returncode in (0, 75), told
    assert "Traceback" not in told
    runs.submit()
    assert runs.wait() == ["finished"] * 2
    for folder in runs.folders():
        assert runs.ends(folder) == ["finished"], "nothing ran twice"

    # While it is down, nothing is known and no run counts as failed.
    more = Sweep(runs.folder, {**runs.base, "epochs": 3}, **runs.parts)
    more.hold(3)
    more.submit("--no-canary")
    more.wait_training(1)
    script("daemon", "kill", "slurmctld", check=True)
    try:
        status = more.status()
        states = [run["state"] for run in status["runs"]]
        assert set(states) <= {"unknown", "running"}  # its lock is visible here
        assert status["silent"]
        refused = more.call("cancel", "--yes", code=2)
        assert "nothing was cancelled" in refused
    finally:
        script("daemon", "start", "slurmctld", check=True)
    more.call("cancel", "--yes")
    more.wait()


def test_a_user_who_is_not_root(user, tiny):
    name, home, show = user
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    shown = show(packages=packages, code=str(ROOT))
    blobs = Path(shutil.copytree(tiny["data_dir"], home / "blobs"))
    blobs.chmod(0o755)
    base = {**tiny, "data_dir": str(blobs), "benchmarks": {"dark": str(blobs / "dark")}}
    runs = Sweep(home / "mine", base, grid={"cl_mode": ["none", "dense"]})
    subprocess.run(["chown", "-R", name, str(runs.folder)], check=True)
    environment = ["env", "-i", f"HOME={home}", "PATH=/usr/bin:/bin",
                   f"PYTHONPATH={shown}/code:{shown}/packages"]  # fmt: skip
    mine = ["runuser", "-u", name, "--", *environment, "/usr/bin/python3", *COMMAND[1:]]

    def call(*words):
        command = [*mine, *words, str(runs.file), "--outputs", str(runs.outputs)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=home)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "submitted 2 runs" in call("run", "--no-tracking")

    assert runs.wait() == ["finished"] * 2
    states = [run["state"] for run in json.loads(call("status", "--json"))["runs"]]
    assert states == ["finished"] * 2
    assert runs.folders()[0].path.owner() == name
    call("report")


@pytest.mark.slow
def test_runs_of_minutes_through_every_fault_at_random(long_runs, undisturbed):
    """Twelve random faults on four runs: all end with the metrics of uninterrupted runs."""
    import random

    chance = random.Random(11)
    runs = long_runs("random", grid={"learning_rate": [1e-3, 2e-3], "cl_mode": ["dense", "global"]})
    runs.base["epochs"] = 600
    runs.write()
    runs.submit("--no-canary")
    for _ in range(12):
        folder = chance.choice(runs.wait_training(1, steps=5))
        fault = chance.choice(["usr2", "requeue", "scancel", "kill"])
        if fault == "usr2":
            slurm("scancel", "--signal=USR2", runs.job(folder))
        elif fault == "requeue":
            slurm("scontrol", "requeue", runs.job(folder))
        elif fault == "scancel":
            slurm("scancel", runs.job(folder))
        else:
            for pid in processes(folder)[:1]:
                kill(pid)
        time.sleep(chance.uniform(0, 3))  # the moment is random
        runs.submit("--no-canary")
    states = runs.wait(900)
    while states != ["finished"] * 4:
        runs.submit("--no-canary")
        states = runs.wait(900)
    check_all(runs, undisturbed)


@pytest.fixture(scope="module")
def small_cluster(cluster):
    """Provide a cluster without accounting and with arrays of two, for the last tests of this
    module."""
    script("stop", "--wipe", check=True)
    script("start", "--no-accounting", "--max-array-size", "2", check=True)
    yield
    script("stop", "--wipe", check=True)
    script("start", check=True)


def test_arrays_are_split_and_the_queue_is_not_overfilled(small_cluster, sweep):
    runs = sweep("split", grid={"learning_rate": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]})
    told = runs.submit()
    (jobs,) = re.findall(r"submitted 5 runs as job ([\d, ]+)", told)
    assert len(jobs.split(",")) == 3
    assert runs.wait() == ["finished"] * 5
    few = sweep("few", profile={"max_submitted": 2}, grid={"cl_mode": ["none", "global", "dense"]})
    told = few.submit()
    assert "submitted 2 runs" in told
    assert "left for later: 1 run; you have as many jobs as the cluster allows" in told
    few.submit("--watch", "--every", "1")
    assert few.states() == ["finished"] * 3
    for folder in [*few.folders(), *runs.folders()]:
        assert runs.ends(folder) == ["finished"]


def test_a_cluster_without_accounts(small_cluster, long_runs, undisturbed):
    runs = long_runs("unaccounted")
    runs.hold(23)
    runs.submit("--no-canary")
    first, second = runs.wait_training(2, steps=20)
    slurm("scancel", runs.job(first))
    training = processes(second)[0]
    above = parent(training)
    kill(above, signal.SIGSTOP)
    kill(training)
    kill(above)
    states = runs.wait()
    assert states[0] == "cancelled"
    assert states[1] in ("failed", "lost")
    assert runs.status()["silent"] == ""
    runs.let_go()
    assert "2 to run" in runs.submit("--no-canary")
    assert runs.wait() == ["finished", "finished"]
    check_all(runs, undisturbed)
