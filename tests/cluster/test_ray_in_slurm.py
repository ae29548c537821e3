"""slurm/ray_cluster.sbatch: a sweep on Ray inside a Slurm job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab import ROOT, slurm, wait_for

from densevit.config import yaml_file
from densevit.sweep.plan import make_plan
from densevit.utils.files import read_json

pytest.importorskip("ray", reason="Ray is not installed: pip install 'densevit[ray]'")
pytestmark = pytest.mark.cluster


@pytest.fixture
def submit(cluster, tiny, tmp_path):
    """Return a function that submits the batch script with a sweep of two runs, of which one fits
    on a node. It returns the job, its log, and a function that returns the folders of the runs."""
    outputs, file, log = (tmp_path / name for name in ("out", "sweep.yaml", "log.txt"))
    # Like a user's shell: the commands of the environment, and this code.
    commands = tmp_path / "bin"
    commands.mkdir()
    command = commands / "densevit-sweep"
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom densevit.cli.main import main_sweep\nsys.exit(main_sweep())\n")  # fmt: skip
    command.chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DENSEVIT_OUTPUTS": str(outputs)}  # fmt: skip

    def make(**base):
        (tmp_path / "base.yaml").write_text(yaml_file.dump({**tiny, **base}))
        parts = {"launcher": "ray", "ray": {"cpus_per_run": 2}}
        parts["grid"] = {"cl_mode": ["none", "dense"]}
        file.write_text(yaml_file.dump({"name": "inside", "base": "base.yaml", **parts}))
        job = subprocess.run(
            ["sbatch", "--parsable", "--nodes", "2", "--cpus-per-task", "2", "--mem", "900M",
             "--output", log, ROOT / "slurm" / "ray_cluster.sbatch", file, "--no-tracking"],
            capture_output=True, text=True, check=True, env=environment, cwd=tmp_path,
        ).stdout.strip()  # fmt: skip
        return job, log, lambda: _folders(file, outputs)

    return make


def _folders(file, outputs):
    plan = make_plan(file, outputs)
    return [plan.run_folder(run) for run in plan.runs]


def ended(job, outputs):
    """Wait for the end of a job, check that nothing of it is left, and return its exit code."""
    wait_for(lambda: job not in slurm("squeue", "-h", "-o", "%i").split(), "the job's end", 600)
    wait_for(lambda: not processes_of(job), "the end of Ray")
    assert not list(outputs.glob(".ray-*")), "the token is gone"
    assert not list(Path("/tmp").glob(f"ray-{job}-*"))
    told = slurm("scontrol", "show", "job", job)
    return int(told.partition("ExitCode=")[2].partition(":")[0])


def processes_of(job):
    """Return the processes that have the job in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"SLURM_JOB_ID={job}".encode() in variables and state not in "ZX":
            found.append(folder.name)
    return found


def test_two_runs_on_ray_on_two_nodes_of_a_job(submit):
    job, log, folders = submit()
    wait_for(lambda: log.exists(), "the job's start")
    code = ended(job, log.parent / "out")
    told = log.read_text()
    assert code == 0, told
    assert "2 runs in 2 cells: 0 finished before, 2 to run" in told
    assert [folder.status().state for folder in folders()] == ["finished"] * 2, told
    starts = [read_json(folder.provenance_file)["starts"] for folder in folders()]
    assert {start["host"] for one in starts for start in one} == {"node1", "node2"}


@pytest.mark.slow
def test_before_its_time_ends_runs_stop_with_a_checkpoint(submit):
    job, log, folders = submit(epochs=60)
    words = lambda: [read_json(folder.status_file) or {} for folder in folders()]  # noqa: E731
    wait_for(lambda: all(word.get("step", 0) > 1 for word in words()), "training")
    slurm("scancel", "--signal=USR1", "--batch", job)  # as Slurm does by --signal
    assert ended(job, log.parent / "out") == 75, log.read_text()
    assert [word["state"] for word in words()] == ["cancelled"] * 2
    assert all(any(folder.checkpoint_folder.iterdir()) for folder in folders())
