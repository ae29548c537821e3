"""Interruptions of a sweep on Slurm.

After each one, every run is finished once with the metrics of an uninterrupted run, or it is
reported with its cause. The cluster stays intact, so these tests run in parallel.
"""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from lab import ROOT, check_all, kill, parent, processes, slurm, wait_for

pytestmark = pytest.mark.cluster


def test_a_signal_requeue_cancel_and_kill(long_runs, undisturbed):
    runs = long_runs("signals")
    runs.hold(23)  # between two checkpoints, so that a killed run loses steps
    runs.submit("--no-canary")
    first, second = runs.wait_training(2, steps=20)
    slurm("scancel", "--signal=USR2", runs.job(first))
    slurm("scontrol", "requeue", runs.job(second))
    wait_for(lambda: len(runs.ends(first)) == 2 and len(runs.ends(second)) == 2)
    assert runs.ends(first)[0] == "preempted"
    assert runs.ends(second)[0] == "requeued"

    # One training is killed; of the other, the process above it is: only Slurm knows of that.
    runs.hold(33)
    runs.wait_training(2, steps=10)
    kill(processes(first)[0])
    training = processes(second)[0]
    above = parent(training)
    kill(above, signal.SIGSTOP)
    kill(training)
    kill(above)
    assert runs.wait() == ["failed", "failed"]
    status = runs.status()
    assert [run["cause"] for run in status["runs"]] == ["killed", "killed"]
    assert "SIGKILL" in status["runs"][0]["why"]
    assert "Slurm says FAILED" in status["runs"][1]["why"]

    # Cancel while the same command restarts the runs.
    runs.hold(43)
    assert "2 to run" in runs.submit("--no-canary")
    first, second = runs.wait_training(2, steps=5)
    slurm("scancel", runs.job(first))
    wait_for(lambda: runs.states() == ["cancelled", "running"])
    runs.let_go()
    runs.submit("--no-canary")
    assert runs.wait() == ["finished", "finished"]
    check_all(runs, undisturbed)


def test_out_of_time_and_on_from_the_checkpoint(long_runs, undisturbed):
    """Slurm ends a job within a minute of its limit of two minutes."""
    runs = long_runs("time", profile={"signal_seconds": 20}, grid={"learning_rate": [1e-3]},
                     resources={"cpus": 1, "mem": "900M", "hours": 2 / 60})  # fmt: skip
    runs.hold(23)
    runs.submit()
    (folder,) = runs.wait_training(1, steps=20)
    wait_for(lambda: len(runs.ends(folder)) > 1, "a second start")
    runs.let_go()
    assert runs.wait() == ["finished"]
    ends = runs.ends(folder)
    assert ends[-1] == "finished"
    assert set(ends[:-1]) == {"timeout"}
    check_all(runs, undisturbed)


def test_out_of_time_again_and_again_without_a_step_is_a_failure(long_runs):
    runs = long_runs("stuck", grid={"learning_rate": [1e-3]},
                     profile={"signal_seconds": 10, "requeue": {"timeouts": 2},
                              "setup": ["export DENSEVIT_TEST=1", "sleep 200 & disown"],
                              "python": f"{sys.executable} {ROOT}/tests/cluster/slow_start.py"},
                     resources={"cpus": 1, "mem": "900M", "hours": 1 / 60})  # fmt: skip
    runs.submit()
    assert runs.wait() == ["failed"]
    (run,) = runs.status()["runs"]
    assert run["cause"] == "timeout"
    assert "ran out of time 2 times in a row at step 0" in run["why"]


HALF_WAY = """
import sys, os
from densevit.launch.slurm import submissions as records; from densevit.launch.slurm import submit
written = records.write
def die(submission):
    if any(chunk.job for chunk in submission.chunks):
        os.kill(os.getpid(), 9)
    written(submission)
records.write = die
from densevit.cli.main import main_sweep
main_sweep(sys.argv[1:])
"""


def test_a_submission_that_dies_half_way_is_taken_over(sweep):
    """The command is killed after sbatch has accepted the jobs and before their id is on disk."""
    runs = sweep("half", grid={"learning_rate": [1e-3, 2e-3]})
    command = [sys.executable, "-c", HALF_WAY, "run", str(runs.file), "--no-tracking", "--outputs", str(runs.outputs)]  # fmt: skip
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    mine = "half-"
    queued = [line for line in slurm("squeue", "-h", "-r", "-o", "%j %T").splitlines() if line.startswith(mine)]  # fmt: skip
    assert len(queued) == 2
    assert all(line.endswith("PENDING") for line in queued), "none starts before it is known"
    told = runs.submit()
    assert "took over the jobs" in told
    assert "2 running or queued, 0 to run" in told
    assert runs.wait() == ["finished"] * 2
    for folder in runs.folders():
        assert runs.ends(folder) == ["finished"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_submission_that_dies_before_or_after_it(sweep, when):
    runs = sweep(f"dies_{when}", grid={"cl_mode": ["none"]})
    broken = {"before": "submit._sbatch", "after": "submit.advance"}[when]
    code = f"import os, sys\nfrom densevit.launch.slurm import submit\n{broken} = lambda *_: os.kill(os.getpid(), 9)\nfrom densevit.cli.main import main_sweep\nmain_sweep(sys.argv[1:])"
    command = [sys.executable, "-c", code, "run", str(runs.file), "--no-tracking", "--outputs", str(runs.outputs)]  # fmt: skip
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    runs.submit()
    assert runs.wait() == ["finished"]
    assert runs.ends(runs.folders()[0]) == ["finished"]


def test_code_that_is_edited_while_jobs_wait_changes_nothing(sweep, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "densevit", checkout / "densevit", ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    first = slurm("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap", "true")
    waits = {"options": {"dependency": f"afterany:{first}"}}
    try:
        kept = sweep("kept", waits, grid={"cl_mode": ["none"]})
        live = sweep("live", waits, grid={"cl_mode": ["none"]}, seeds=[1])
        for runs, words in ((kept, ()), (live, ("--live-code",))):
            runs.submit(*words, env=environment, cwd=checkout)
        assert kept.states() == live.states() == ["queued"]
        (checkout / "densevit" / "train" / "loop.py").write_text("raise SystemError('edited')\n")
    finally:
        slurm("scancel", first)
    assert kept.wait() == ["finished"]
    assert live.wait() == ["failed"]
    assert "SystemError: edited" in live.status()["runs"][0]["why"]
    start = json.loads(kept.folders()[0].provenance_file.read_text())["starts"][0]
    assert (kept.outputs / "code" / start["code"] / "densevit" / "train" / "loop.py").exists()


def test_what_it_costs_is_measured_by_a_short_job(sweep):
    priced = sweep("priced", grid={"cl_mode": ["none", "dense"]})
    told = priced.call("plan", "--estimate", "--profile", priced.folder / "profile.yaml")
    assert "measuring in job" in told
    assert "estimated cost: 2 runs" in told
    assert "share of cl_mode: none" in told
    refused = priced.submit("--budget", "0.00001gpuh", code=2)
    assert "more than the 1e-05 of the budget" in refused
    assert set(priced.states()) == {"pending"}
    priced.submit("--budget", "100gpuh")
    assert priced.wait() == ["finished"] * 2
    assert "estimated for all runs" in priced.call("status")


def test_a_log_is_followed_to_its_end(sweep, tmp_path):
    runs = sweep("followed", base={"epochs": 4}, grid={"cl_mode": ["none"]})
    runs.hold(8)
    runs.submit()
    runs.wait_training(1, steps=8)
    command = runs.command("logs", runs.file, runs.plan.runs[0].id[:6], "--follow")
    shown = tmp_path / "shown"
    with shown.open("w") as file:
        follower = subprocess.Popen(command, stdout=file)
    wait_for(lambda: "epoch 1 of 4" in shown.read_text())
    assert runs.states() == ["running"], "it is shown before the end"
    runs.let_go()
    assert follower.wait(240) == 0
    told = shown.read_text()
    assert "epoch 3 of 4" in told
    assert told.rstrip().endswith("finished")
