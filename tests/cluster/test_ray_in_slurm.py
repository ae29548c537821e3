"""slurm/ray_cluster.sbatch: a sweep on Ray inside a job of Slurm's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab import ROOT, slurm, wait_for

from densevit import yamlfile
from densevit.rundir import read_json
from densevit.sweep.plan import make_plan

pytest.importorskip("ray", reason="Ray is not installed: pip install 'densevit[ray]'")


@pytest.mark.cluster
def test_two_runs_on_ray_on_two_nodes_of_a_job(cluster, tiny, tmp_path):
    outputs, file = tmp_path / "out", tmp_path / "sweep.yaml"
    (tmp_path / "base.yaml").write_text(yamlfile.dump(dict(tiny)))
    grid = {"cl_mode": ["none", "dense"]}
    parts = {"ray": {"cpus_per_run": 2}, "launcher": "ray"}
    file.write_text(yamlfile.dump({"name": "inside", "base": "base.yaml", "grid": grid, **parts}))
    # As a user's shell: the environment's commands, and this code.
    commands = tmp_path / "bin"
    commands.mkdir()
    command = commands / "densevit-sweep"
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom densevit.cli import main_sweep\nsys.exit(main_sweep())\n")  # fmt: skip
    command.chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DENSEVIT_OUTPUTS": str(outputs)}  # fmt: skip
    log = tmp_path / "log.txt"
    job = subprocess.run(
        ["sbatch", "--parsable", "--nodes", "2", "--cpus-per-task", "2", "--mem", "3000M",
         "--output", log, ROOT / "slurm" / "ray_cluster.sbatch", file, "--no-tracking"],
        capture_output=True, text=True, check=True, env=environment, cwd=tmp_path,
    ).stdout.strip()  # fmt: skip
    wait_for(lambda: job not in slurm("squeue", "-h", "-o", "%i"), 200, "the job's end")
    plan = make_plan(file, outputs)
    told = log.read_text()
    assert [plan.run_folder(run).status().state for run in plan.runs] == ["finished"] * 2, told
    assert "2 runs in 2 cells: 0 finished before, 2 to run" in told
    starts = [read_json(plan.run_folder(run).provenance_file)["starts"] for run in plan.runs]
    assert {start["host"] for one in starts for start in one} == {"node1", "node2"}
    assert not list(outputs.glob(".ray-*")), "the token is gone"
    wait_for(lambda: not _left(job), 20, "the end of Ray")


def _left(job):
    """Processes that have the job in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        if f"SLURM_JOB_ID={job}".encode() in variables and state not in "ZX":
            found.append((folder / "cmdline").read_bytes())
    return found
