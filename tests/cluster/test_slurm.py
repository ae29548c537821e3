"""Sweeps on a real Slurm, as a user runs them."""

import json
import os
import sys

import pytest
from holding import ENVIRONMENT
from lab import LONG, TWO, assert_whole, finished_here, results, slurm, wait_for
from spans import most_at_once

from densevit.launch.slurm import attempts

pytestmark = pytest.mark.cluster

RATES = [1e-3, 2e-3]
FOUR = {"grid": {"cl_mode": ["dense"], "learning_rate": RATES}, "seeds": 2}


def jobs_of(sweep):
    """Return Slurm's records of the sweep's jobs."""
    names = slurm("squeue", "-h", "-r", "-t", "all", "-o", "%j %i").splitlines()
    return sorted(
        line.split()[1] for line in names if line.startswith(f"{sweep.file.parent.name}-")
    )


def test_four_runs_two_at_a_time_and_nothing_twice(sweep, tmp_path):
    four = sweep("four", profile={"throttle": 2}, **FOUR)
    dry = four.submit("--dry-run")
    assert "4 to start" in " ".join(dry.split())
    assert not four.outputs.exists(), "a dry run creates nothing"
    plans = [
        json.loads(four.call("plan", "--json", "--launcher", launcher))["runs"]
        for launcher in ("local", "slurm", "ray")
    ]
    assert plans[0] == plans[1] == plans[2]

    told = four.submit()
    assert "submitted 4 runs as job" in told
    script = next(four.outputs.glob("sweeps/*/submissions/*/jobs/*_submission.sh")).read_text()
    assert "#SBATCH --array=0-3%2" in script
    assert four.wait() == ["finished"] * 4
    for folder in four.folders():
        assert_whole(folder)
        assert four.ends(folder) == ["finished"]
    starts = [attempts.read(folder)[0] for folder in four.folders()]
    assert most_at_once([(start.started, start.ended) for start in starts]) <= 2
    assert [run["id"] for run in plans[0]] == [f.path.name for f in four.folders()]

    before = jobs_of(four)
    assert "4 finished before, 0 to run" in four.submit()
    four.write(grid={**FOUR["grid"], "learning_rate": [*RATES, 7e-3]})
    four.hold(3)
    told = four.submit()
    assert "4 finished before, 2 to run" in told
    assert "submitted 2 runs" in told
    assert "2 running or queued, 0 to run" in four.submit()
    assert len(jobs_of(four)) == len(before) + 2
    four.let_go()
    assert four.wait() == ["finished"] * 6

    # The metrics are those of this machine without Slurm.
    run = four.plan.runs[3]
    here = finished_here(tmp_path / "here", run.config)
    assert results(four.plan.run_folder(run)) == results(here)
    table = four.call("report")
    assert table.count("2/2") == 3


@pytest.mark.parametrize(
    ("profile", "resources", "said"),
    [
        ({"partition": "gone"}, {}, "Invalid partition name specified"),
        (
            {},
            {"mem": "900G"},
            "Requested node configuration is not available (cpus: 1, hours: 1.0, mem: 900G)",
        ),
        ({}, {"gpus": 9}, "Requested node configuration is not available"),
        ({}, {"nodes": 9}, "Requested node configuration is not available"),
        ({"options": {"reservation": "nobody"}}, {}, "reservation"),
    ],
    ids=["partition", "memory", "gpus", "nodes", "reservation"],
)
def test_what_slurm_refuses_is_told_in_its_words_and_nothing_is_submitted(
    sweep, request, profile, resources, said
):
    # The second group is valid: it must not stay in the queue.
    name = f"bad_{request.node.callspec.id}"
    bad = sweep(name, profile=profile, grid={"cl_mode": ["global", "none"]},
                resources={"cpus": 1, "mem": "900M", "hours": 1,
                           "when": [{"where": {"cl_mode": "none"}, **resources}]})  # fmt: skip
    told = bad.submit(code=2)
    assert said.lower() in told.lower()
    assert "Traceback" not in told
    last = told.strip().splitlines()[-1]
    assert last.startswith("densevit-sweep: ")
    assert not [
        j for j in slurm("squeue", "-h", "-o", "%j").splitlines() if j.startswith(f"{name}-")
    ]
    assert set(bad.states()) == {"pending"}
    assert not list(bad.outputs.glob("sweeps/*/submissions/*"))


def test_a_job_that_is_too_long_or_whose_setup_fails_says_so(sweep):
    long = sweep("long", profile={"partition": "urgent"}, grid={"cl_mode": ["none"]})
    slurm("scontrol", "update", "partitionname=urgent", "maxtime=30")
    try:
        told = long.submit(code=2)
    finally:
        slurm("scontrol", "update", "partitionname=urgent", "maxtime=unlimited")
    assert "resources.hours: 1 is more than the 0.5 hours that partition urgent allows" in told
    assert not list(long.outputs.glob("sweeps/*"))

    setup = ["for n in 1 2; do", "  [ $n = 3 ] && echo three", "done", "no-such-module load cuda"]
    broken = sweep("broken", profile={"setup": setup}, grid={"cl_mode": ["none"]})
    broken.submit()
    assert broken.wait() == ["failed"]
    why = broken.status()["runs"][0]["why"]
    assert "setup failed with exit code 127: no-such-module load cuda" in why


def test_resources_that_change_while_jobs_wait(sweep):
    waiting = sweep("waiting", profile={"options": {"begin": "now+2hours"}}, **FOUR)
    waiting.submit("--no-canary")
    waiting.write(resources={"cpus": 1, "mem": "900M", "hours": 2})
    told = waiting.submit("--no-canary")
    assert "4 waiting jobs of this sweep: resources have changed" in told
    assert "(hours 1.0 -> 2.0)" in told
    told = waiting.submit("--no-canary", "--replace")
    assert "cancelled 4 waiting jobs with the former resources" in told
    assert "submitted 4 runs" in told
    left = slurm("squeue", "-h", "-r", "-t", "pending", "-o", "%j %l").splitlines()
    assert [line.split()[1] for line in left if line.startswith("waiting-")] == ["2:00:00"] * 4
    waiting.call("cancel", "--yes")


# It runs a command as Apptainer does, with Slurm's commands out of its sight.
CONTAINER = """#!/bin/sh
echo "$@" >> {log}
shift 5
exec unshare --mount sh -c '
  for name in scontrol squeue sacct scancel; do mount --bind /dev/null "$(command -v $name)"; done
  exec "$@"' - "$@"
"""


def test_runs_in_a_container_reach_slurm_through_their_script(sweep, tmp_path, monkeypatch):
    image, program = tmp_path / "image.sif", tmp_path / "apptainer"
    image.touch()
    program.write_text(CONTAINER.format(log=tmp_path / "calls"))
    program.chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    profile = {"container": {"image": str(image), "mounts": ["/srv"]}, "python": sys.executable}
    inside = sweep("inside", profile=profile, base=LONG, **TWO)
    inside.hold(30)
    inside.submit(env=environment)
    first = inside.wait_training(steps=21)[0]
    # The canary has released the other, without scontrol.
    inside.wait_training(2, steps=1)
    slurm("scancel", "--signal=USR2", inside.job(first))  # a preemption: its job is requeued
    wait_for(lambda: "preempted" in inside.ends(first))
    inside.let_go()
    assert inside.wait() == ["finished"] * 2
    assert len(inside.ends(first)) == 2
    call = (tmp_path / "calls").read_text().splitlines()[0]
    assert call.startswith(f"exec --nv --bind {inside.outputs},/srv {image} {sys.executable} ")


def test_without_slurm_there_is_one_line(sweep, tmp_path):
    lonely = sweep("lonely", grid={"cl_mode": ["none"]})
    told = lonely.submit(code=2, env={"PATH": "/nowhere"})
    assert told.strip().splitlines()[-1] == (
        "densevit-sweep: launcher: slurm: there is no sbatch on the PATH; run this where jobs are "
        "submitted, or choose --launcher local"
    )
    assert not lonely.outputs.exists()


def test_a_mistake_burns_one_job_and_not_all(sweep):
    """Every run fails in its first step: only the canary must fail."""
    burnt = sweep("burnt", base={"cl_mode": "none", "grad_clip": 0.0},
                  grid={"learning_rate": [1e30, 2e30, 3e30]})  # fmt: skip
    burnt.submit()
    assert burnt.wait() == ["failed", "pending", "pending"]
    status = burnt.status()
    assert status["causes"] == {"nan": 1}
    assert "held back: the first steps of" in status["runs"][1]["why"]
    assert not burnt.folders()[1].log_file.exists()
    told = burnt.call("explain", burnt.folders()[0].path.name[:8])
    assert "failed (nan)" in told
    assert "starts    1: 1 failed" in told
    logs = burnt.call("logs", "--failed")
    assert "not finite" in logs

    # --no-canary starts them all; equal failures are one line.
    burnt.submit("--no-canary")
    assert burnt.wait() == ["failed"] * 3
    told = burnt.call("status")
    assert "3 of 3 failed (nan)" in told
    told = burnt.call("retry", "--class", "oom", "--no-tracking")
    assert "no such run has failed" in told
    told = burnt.call("retry", "--class", "nan", "--set", "resources.mem=1000M", "--no-canary", "--no-tracking")  # fmt: skip
    assert "mem 1000M" in told
    assert "cancelled 3 jobs" in burnt.call("cancel", "--yes")


def test_a_failing_cell_among_good_ones(sweep):
    mixed = sweep("mixed", base={"cl_mode": "none", "grad_clip": 0.0},
                  grid={"learning_rate": [1e-3, 1e30, 2e-3]})  # fmt: skip
    mixed.submit()
    assert mixed.wait() == ["finished", "failed", "finished"]
    sacct = wait_for(lambda: _ended(mixed), "accounts")
    assert [state for _, state in sacct] == ["COMPLETED", "FAILED", "COMPLETED"]


def _ended(sweep):
    job = sweep.status()["runs"][0]["job"] or sweep.job(sweep.folders()[0])
    text = slurm("sacct", "-n", "-X", "-P", "-j", job.partition("_")[0], "-o", "JobID,State")
    rows = sorted(line.split("|") for line in text.splitlines())
    return rows if len(rows) == 3 and all(state in ("COMPLETED", "FAILED") for _, state in rows) else None  # fmt: skip


def test_several_runs_in_one_job(sweep):
    packed = sweep("packed", grid={"learning_rate": [1e-3, 2e-3]}, seeds=2,
                   resources={"cpus": 2, "mem": "2000M", "hours": 1, "pack": 2})  # fmt: skip
    told = packed.submit()
    assert "submitted 4 runs" in told
    assert packed.wait() == ["finished"] * 4
    assert len({packed.job(folder) for folder in packed.folders()}) == 2


def test_cancel_asks_and_the_same_command_carries_on(sweep):
    runs = sweep("cancelled", base={"epochs": 3}, grid={"learning_rate": [1e-3, 2e-3, 3e-3]},
                 profile={"throttle": 1})  # fmt: skip
    runs.hold(8)
    runs.submit("--no-canary")
    first = runs.wait_training()[0]
    # Another sweep with one of these runs does not start it again.
    other = sweep("other", base={"epochs": 3}, grid={"learning_rate": [3e-3, 4e-3]})
    other.outputs = runs.outputs
    assert other.submit("--dry-run").split()[:8] == ["0", "finished", "1", "running", "or", "queued", "0", "unknown"]  # fmt: skip
    refused = runs.call("cancel", code=2, stdin=-3)
    assert "without a terminal, confirm with --yes" in refused
    assert "cancelled 3 jobs" in runs.call("cancel", "--yes")
    assert runs.wait() == ["cancelled"] * 3
    wait_for(lambda: runs.ends(first) == ["cancelled"])  # the job records it after the run
    step = first.status().step
    runs.hold(13)
    runs.submit("--no-canary")
    runs.wait_training()
    assert f"continuing after step {step} of" in first.log_file.read_text()
    runs.call("cancel", "--yes")


def test_a_run_on_two_nodes(sweep, tmp_path):
    both = sweep("both", base={"epochs": 3}, grid={"cl_mode": ["dense"]},
                 resources={"cpus": 1, "mem": "900M", "hours": 1, "nodes": 2})  # fmt: skip
    both.submit()
    assert both.wait() == ["finished"]
    (folder,) = both.folders()
    assert attempts_nodes(both) == 2
    alone = finished_here(tmp_path / "alone", both.plan.runs[0].config)
    got, wanted = results(folder), results(alone)
    for name, numbers in wanted.items():
        assert got[name]["nll"] == pytest.approx(numbers["nll"], rel=1e-3)
        assert got[name]["n"] == numbers["n"]


def attempts_nodes(sweep):
    (folder,) = sweep.folders()
    job = sweep.job(folder)
    return int(wait_for(lambda: slurm("sacct", "-n", "-X", "-j", job, "-o", "NNodes").strip()))
