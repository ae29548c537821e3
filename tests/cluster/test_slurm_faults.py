"""What a cluster does to a sweep: after each fault every run is finished once, with the numbers that
it would have had, or it is reported with its cause.

These take half a minute to four minutes each and break the cluster they run on; `make cluster-faults`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from lab import (
    COMMAND,
    ROOT,
    Sweep,
    assert_whole,
    finished_here,
    kill,
    parent,
    processes,
    results,
    script,
    slurm,
    wait_for,
    whole,
)

pytestmark = pytest.mark.cluster

LONG = {"epochs": 120, "log_every": 5, "cl_mode": "dense"}
TWO = {"grid": {"learning_rate": [1e-3, 2e-3]}}


@pytest.fixture(autouse=True)
def whole_cluster(cluster):
    """What one test has done to the cluster is not the next one's fault."""
    try:
        for job in set(slurm("squeue", "-h", "-o", "%F").split()):
            slurm("scancel", job)
        wait_for(whole, 60, "a whole cluster")
    except (AssertionError, subprocess.SubprocessError) as seen:
        warnings.warn(str(seen), stacklevel=1)
        script("stop", "--wipe", check=True)
        script("start", check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A function that gives the numbers that a run has when nothing happens to it."""
    known = {}

    def numbers(run):
        if run.id not in known:
            known[run.id] = finished_here(tmp_path_factory.mktemp("here") / run.id, run.config)
        return results(known[run.id])

    return numbers


@pytest.fixture
def long_runs(sweep):
    def make(name, **parts):
        return sweep(name, base=LONG, **{**TWO, **parts})

    return make


def check_all(runs, undisturbed):
    for run, folder in zip(runs.plan.runs, runs.folders(), strict=True):
        assert_whole(folder)
        assert results(folder) == undisturbed(run)


def test_a_signal_requeue_cancel_and_kill(long_runs, undisturbed):
    runs = long_runs("signals")
    runs.submit("--no-canary")
    first, second = runs.wait_training(2, steps=20)
    slurm("scancel", "--signal=USR2", runs.job(first))
    slurm("scontrol", "requeue", runs.job(second))
    wait_for(lambda: len(runs.ends(first)) == 2 and len(runs.ends(second)) == 2)
    assert runs.ends(first)[0] == "preempted"
    assert runs.ends(second)[0] == "requeued"

    # One training is killed, and with the other the process above it: Slurm alone knows of that.
    runs.wait_training(2, steps=10)
    kill(processes(first)[0])
    training = processes(second)[0]
    above = parent(training)
    kill(above, signal.SIGSTOP)
    kill(training)
    kill(above)
    states = runs.wait()
    assert states == ["failed", "failed"]
    status = runs.status()
    assert [run["cause"] for run in status["runs"]] == ["killed", "killed"]
    assert "SIGKILL" in status["runs"][0]["why"]
    assert "Slurm says FAILED" in status["runs"][1]["why"]

    # Cancelled in the middle of what the same command started again.
    assert "2 to run" in runs.submit("--no-canary")
    first, second = runs.wait_training(2, steps=5)
    slurm("scancel", runs.job(first))
    wait_for(lambda: runs.states() == ["cancelled", "running"] or runs.states()[0] == "cancelled")
    runs.submit("--no-canary")
    assert runs.wait() == ["finished", "finished"]
    check_all(runs, undisturbed)


def test_preempted_by_a_partition_of_higher_priority(long_runs, undisturbed):
    runs = long_runs("preempted", resources={"cpus": 4, "mem": "3000M", "hours": 1})
    runs.submit("--no-canary")
    runs.wait_training(2, steps=20)
    urgent = slurm("sbatch", "--parsable", "-p", "urgent", "-N", "2", "-c", "4", "--mem=3000M", "--output=/dev/null", "--wrap", "srun true")  # fmt: skip
    wait_for(lambda: slurm("sacct", "-n", "-X", "-j", urgent, "-o", "State").strip() == "COMPLETED")
    assert runs.wait() == ["finished", "finished"]
    check_all(runs, undisturbed)
    for folder in runs.folders():
        assert runs.ends(folder) == ["preempted", "finished"]


def test_out_of_time_and_on_from_the_checkpoint(sweep, undisturbed):
    """Two minutes at a time, of which Slurm takes one, for a run of more than one."""
    runs = sweep("time", base={**LONG, "epochs": 1200}, profile={"signal_seconds": 20},
                 grid={"learning_rate": [1e-3]},
                 resources={"cpus": 1, "mem": "900M", "hours": 2 / 60})  # fmt: skip
    runs.submit()
    assert runs.wait(900) == ["finished"]
    (folder,) = runs.folders()
    ends = runs.ends(folder)
    assert ends[-1] == "finished"
    assert set(ends[:-1]) == {"timeout"}
    check_all(runs, undisturbed)


def test_out_of_time_again_and_again_without_a_step_is_a_failure(sweep):
    runs = sweep("stuck", base={**LONG, "epochs": 20}, grid={"learning_rate": [1e-3]},
                 profile={"signal_seconds": 10, "requeue": {"timeouts": 2},
                          "setup": ["export DENSEVIT_TEST=1", "sleep 200 & disown"],
                          "python": f"{sys.executable} {ROOT}/tests/cluster/slow_start.py"},
                 resources={"cpus": 1, "mem": "900M", "hours": 1 / 60})  # fmt: skip
    runs.submit()
    assert runs.wait(600) == ["failed"]
    (run,) = runs.status()["runs"]
    assert run["cause"] == "timeout"
    assert "ran out of time 2 times in a row at step 0" in run["why"]


def test_a_node_dies(long_runs, undisturbed):
    runs = long_runs("node", resources={"cpus": 4, "mem": "3000M", "hours": 1})
    runs.submit("--no-canary")
    runs.wait_training(2, steps=20)
    victim = next(f for f in runs.folders() if _node(runs, f) == "node1")
    job = runs.job(victim)
    raw = slurm("squeue", "-h", "-j", job, "-o", "%A")
    script("daemon", "kill", "slurmd-node1", check=True)
    try:
        # The machine is gone with all that ran on it: those first who could tell the controller.
        keepers = _pids(f"slurmstepd: .{raw}[.]")
        assert len(keepers) >= 2
        for pid in [*keepers, *_below(keepers)]:
            kill(pid)
        wait_for(lambda: "down" in slurm("sinfo", "-h", "-N", "-n", "node1", "-o", "%T"), 120)
        assert "failed" not in runs.states()
        wait_for(lambda: runs.ends(victim)[0] == "node", 120)
    finally:
        script("daemon", "start", "slurmd-node1", check=True)
    states = runs.wait()
    assert states == ["finished", "finished"]
    assert runs.ends(victim) == ["node", "finished"]
    check_all(runs, undisturbed)


def _node(runs, folder):
    return json.loads(folder.attempts_file.read_text())["attempts"][-1]["node"]


def _pids(pattern):
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _below(pids):
    """The processes that some have started, and those that these have."""
    found = []
    for pid in pids:
        children = subprocess.run(
            ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
        )
        mine = [int(child) for child in children.stdout.split()]
        found += [*mine, *_below(mine)]
    return found


def test_the_controller_is_restarted_while_runs_are_submitted(sweep):
    runs = sweep("controller", grid={"learning_rate": [1e-3, 2e-3, 3e-3]}, seeds=2)
    # Whose end the controller does not hear, it takes for lost, and starts them again.
    wait_for(lambda: slurm("squeue", "-h") == "", 60)
    script("daemon", "kill", "slurmctld", check=True)
    try:
        submitting = subprocess.Popen(
            runs.command("run", runs.file, "--no-tracking"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        status = runs.status()
        assert {run["state"] for run in status["runs"]} <= {"pending", "unknown"}
    finally:
        script("daemon", "start", "slurmctld", check=True)
    told, _ = submitting.communicate(timeout=200)
    assert submitting.returncode in (0, 75), told
    assert "Traceback" not in told
    runs.submit()
    assert runs.wait() == ["finished"] * 6
    for folder in runs.folders():
        assert runs.ends(folder) == ["finished"], "nothing ran twice"

    # While it is down nothing is known, and nothing is called failed.
    more = Sweep(runs.folder, {**runs.base, "epochs": 300}, **runs.parts)
    more.submit("--no-canary")
    more.wait_training(1)
    script("daemon", "kill", "slurmctld", check=True)
    try:
        status = more.status()
        states = [run["state"] for run in status["runs"]]
        assert set(states) <= {"unknown", "running"}  # whose lock can be seen here
        assert status["silent"]
        refused = more.call("cancel", "--yes", code=2)
        assert "nothing was cancelled" in refused
    finally:
        script("daemon", "start", "slurmctld", check=True)
    more.call("cancel", "--yes")
    more.wait(90)


HALF_WAY = """
import sys, os
from densevit.sweep.launch.slurm import records, submit
written = records.write
def die(submission):
    if any(chunk.job for chunk in submission.chunks):
        os.kill(os.getpid(), 9)
    written(submission)
records.write = die
from densevit.cli import main_sweep
main_sweep(sys.argv[1:])
"""


def test_a_submission_that_dies_half_way_is_taken_over(sweep):
    """Killed after sbatch has taken the jobs, and before their id is on the disk."""
    runs = sweep("half", grid={"learning_rate": [1e-3, 2e-3, 3e-3]})
    command = [sys.executable, "-c", HALF_WAY, "run", str(runs.file), "--no-tracking", "--outputs", str(runs.outputs)]  # fmt: skip
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    mine = "half-"
    queued = [line for line in slurm("squeue", "-h", "-r", "-o", "%j %T").splitlines() if line.startswith(mine)]  # fmt: skip
    assert len(queued) == 3
    assert all(line.endswith("PENDING") for line in queued), "none starts before it is known"
    told = runs.submit()
    assert "took them over" in told
    assert "3 running or queued, 0 to run" in told
    assert runs.wait() == ["finished"] * 3
    for folder in runs.folders():
        assert runs.ends(folder) == ["finished"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_submission_that_dies_before_or_after_it(sweep, when):
    runs = sweep("early", grid={"learning_rate": [1e-3, 2e-3]})
    broken = {"before": "submit._sbatch", "after": "submit.advance"}[when]
    code = f"import os, sys\nfrom densevit.sweep.launch.slurm import submit\n{broken} = lambda *_: os.kill(os.getpid(), 9)\nfrom densevit.cli import main_sweep\nmain_sweep(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", str(runs.file), "--no-tracking", "--outputs", str(runs.outputs)]  # fmt: skip
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    runs.submit()
    assert runs.wait() == ["finished"] * 2
    for folder in runs.folders():
        assert runs.ends(folder) == ["finished"]


def test_code_that_is_edited_while_jobs_wait_changes_nothing(sweep, tmp_path, tiny):
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "densevit", checkout / "densevit", ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    blocking = slurm("sbatch", "--parsable", "-N", "2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 600")  # fmt: skip
    try:
        wait_for(lambda: slurm("squeue", "-h", "-j", blocking, "-o", "%T") == "RUNNING")
        kept = sweep("kept", grid={"cl_mode": ["none"]})
        live = sweep("live", grid={"cl_mode": ["none"]}, seeds=[1])
        for runs, words in ((kept, ()), (live, ("--live-code",))):
            runs.submit(*words, env=environment, cwd=checkout)
        (checkout / "densevit" / "train.py").write_text("raise SystemError('edited')\n")
    finally:
        slurm("scancel", blocking)
    assert kept.wait() == ["finished"]
    assert live.wait() == ["failed"]
    assert "SystemError: edited" in live.status()["runs"][0]["why"]
    start = json.loads(kept.folders()[0].provenance_file.read_text())["starts"][0]
    assert (kept.outputs / "code" / start["code"] / "densevit" / "train.py").exists()


def test_arrays_are_split_and_the_queue_is_not_overfilled(other_cluster, tmp_path, tiny):
    other_cluster("--max-array-size", "5")
    runs = Sweep(tmp_path / "split", tiny, grid={"cl_mode": ["none", "global", "dense"], "learning_rate": [1e-3, 2e-3]}, seeds=2)  # fmt: skip
    told = runs.submit()
    (jobs,) = re.findall(r"submitted 12 runs as job ([\d, ]+)", told)
    assert len(jobs.split(",")) == 3
    assert runs.wait() == ["finished"] * 12
    few = Sweep(tmp_path / "few", tiny, profile={"max_submitted": 4}, grid={"learning_rate": [1e-3, 2e-3, 3e-3]}, seeds=2)  # fmt: skip
    told = few.submit()
    assert "submitted 4 runs" in told
    assert "2 runs wait: the cluster takes no more jobs from you now" in told
    told = few.submit("--watch", "--every", "1")
    assert few.states() == ["finished"] * 6
    for folder in [*few.folders(), *runs.folders()]:
        assert runs.ends(folder) == ["finished"]


def test_a_cluster_without_accounts(other_cluster, tmp_path, tiny, undisturbed):
    other_cluster("--no-accounting")
    runs = Sweep(tmp_path / "unaccounted", {**tiny, **LONG}, **TWO)
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
    assert "2 to run" in runs.submit("--no-canary")
    assert runs.wait() == ["finished", "finished"]
    check_all(runs, undisturbed)


def test_a_user_who_is_not_root(user, tiny):
    name, home, show = user
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    shown = show(packages=packages, code=str(ROOT))
    blobs = Path(shutil.copytree(tiny["data_dir"], home / "blobs"))
    blobs.chmod(0o755)
    base = {**tiny, "data_dir": str(blobs), "benchmarks": {"dark": str(blobs / "dark")}}
    runs = Sweep(home / "mine", base, grid={"cl_mode": ["none", "global", "dense"]})
    subprocess.run(["chown", "-R", name, str(runs.folder)], check=True)
    environment = ["env", "-i", f"HOME={home}", "PATH=/usr/bin:/bin",
                   f"PYTHONPATH={shown}/code:{shown}/packages"]  # fmt: skip
    mine = ["runuser", "-u", name, "--", *environment, "/usr/bin/python3", *COMMAND[1:]]

    def call(*words):
        command = [*mine, *words, str(runs.file), "--outputs", str(runs.outputs)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=home)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "submitted 3 runs" in call("run", "--no-tracking")

    def over():
        states = [run["state"] for run in json.loads(call("status", "--json"))["runs"]]
        return states if not {"running", "queued"} & set(states) else None

    assert wait_for(over, 240) == ["finished"] * 3
    assert runs.folders()[0].path.owner() == name
    call("report")


def test_what_it_costs_is_measured_by_a_short_job(sweep):
    priced = sweep("priced", grid={"cl_mode": ["none", "dense"]}, seeds=2)
    told = priced.call("plan", "--estimate", "--profile", "./profile.yaml")
    assert "measuring in job" in told
    assert "estimated cost: 4 runs" in told
    assert "share of cl_mode: none" in told
    refused = priced.submit("--budget", "0.00001gpuh", code=2)
    assert "more than the 1e-05 of the budget" in refused
    assert set(priced.states()) == {"pending"}
    priced.submit("--budget", "100gpuh")
    assert priced.wait() == ["finished"] * 4
    assert "estimated for all runs" in priced.call("status")


def test_a_log_is_followed_to_its_end(sweep):
    runs = sweep("followed", base={"epochs": 20}, grid={"cl_mode": ["none"]})
    runs.submit()
    told = runs.call("logs", runs.plan.runs[0].id[:6], "--follow")
    assert "epoch 19 of 20" in told
    assert told.rstrip().endswith("finished")


@pytest.mark.slow
def test_runs_of_minutes_through_every_fault_at_random(long_runs, undisturbed):
    """Twelve random faults to four runs: all end with the numbers of undisturbed ones."""
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
        time.sleep(chance.uniform(0, 3))  # the moment is what is random
        runs.submit("--no-canary")
    states = runs.wait(900)
    while states != ["finished"] * 4:
        runs.submit("--no-canary")
        states = runs.wait(900)
    check_all(runs, undisturbed)
