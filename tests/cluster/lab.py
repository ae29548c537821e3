"""A real Slurm for the tests, sweeps on it, and queries that many tests need."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from holding import ENVIRONMENT, hold, let_go

from densevit.config import yaml_file
from densevit.launch.launchers import observe
from densevit.launch.slurm import attempts
from densevit.runs.metrics_file import read_metrics
from densevit.sweep.plan import make_plan
from densevit.utils.files import last_lines, read_json

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "slurm" / "local-cluster.sh"
COMMAND = [sys.executable, "-c", "import sys; from densevit.cli.main import main_sweep; sys.exit(main_sweep())"]  # fmt: skip

# Sixty steps, with a checkpoint after every fifth.
LONG = {"epochs": 12, "log_every": 5, "cl_mode": "dense"}
TWO = {"grid": {"learning_rate": [1e-3, 2e-3]}}


def script(*arguments, **options):
    """Run slurm/local-cluster.sh."""
    return subprocess.run(
        [str(SCRIPT), *arguments], capture_output=True, text=True, timeout=600, **options
    )


def slurm(*command):
    """Return the output of one of Slurm's commands."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout.strip()


def wait_for(condition, what="it", seconds=600):
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}; {cluster_state()}"
        time.sleep(0.25)
    return found


def cluster_state():
    """Return the state of the nodes and jobs in one line, for a test that failed."""
    asked = ["sinfo", "-h", "-N", "-o", "%N %T %E"], ["squeue", "-h", "-o", "%i %j %T %r"]
    done = [subprocess.run(["timeout", "10", *words], capture_output=True, text=True, check=False)
            for words in asked]  # fmt: skip
    return " | ".join(" ; ".join((each.stdout or each.stderr).splitlines()) for each in done)


def whole():
    """Return whether the cluster is idle and all its nodes are free."""
    nodes = slurm("sinfo", "-h", "-N", "-p", "lab", "-o", "%T").splitlines()
    return set(nodes) == {"idle"} and not slurm("squeue", "-h")


class Sweep:
    """A sweep of tiny runs in its own folder."""

    def __init__(self, folder, base, profile=None, **parts):
        self.folder, self.base, self.parts = folder, dict(base), parts
        self.outputs = folder / "out"
        self.file = folder / "sweep.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "profile.yaml").write_text(
            yaml_file.dump({"signal_seconds": 10, **(profile or {})})
        )
        self.write()

    def write(self, **changes):
        """Write the files; `changes` replace parts of the sweep."""
        self.parts |= changes
        (self.folder / "base.yaml").write_text(yaml_file.dump(self.base))
        wanted = {"name": self.folder.name, "base": "base.yaml", "launcher": "slurm",
                  "profile": "./profile.yaml",
                  "resources": {"cpus": 1, "mem": "900M", "hours": 1}}  # fmt: skip
        self.file.write_text(yaml_file.dump({**wanted, **self.parts}))

    @property
    def plan(self):
        return make_plan(self.file, self.outputs)

    def command(self, *words):
        return [*COMMAND, *map(str, words), "--outputs", str(self.outputs)]

    def call(self, *words, code=0, timeout=600, **options):
        """Run a command on the sweep file and return its output."""
        first = [words[0], self.file, *words[1:]] if words and words[0][0] != "-" else [self.file, *words]  # fmt: skip
        done = subprocess.run(
            self.command(*first), capture_output=True, text=True, timeout=timeout,
            **{"env": ENVIRONMENT, **options},
        )  # fmt: skip
        assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, *words, **options):
        return self.call("run", "--no-tracking", *words, **options)

    def status(self):
        return json.loads(self.call("status", "--json"))

    def states(self):
        """Return the states of the runs without the command, which takes a second to start."""
        plan = self.plan
        found = observe(plan).runs
        return [found[run.id].state for run in plan.runs]

    def hold(self, step):
        hold(self.outputs, step)

    def let_go(self):
        let_go(self.outputs)

    def wait(self, seconds=600):
        """Wait until no run is running or queued; return the states."""

        def over():
            states = self.states()
            return states if not {"running", "queued", "unknown"} & set(states) else None

        states = wait_for(over, "the end of the sweep", seconds)
        for folder in (f for f, s in zip(self.folders(), states, strict=True) if s == "failed"):
            # pytest shows it if the test fails.
            print(folder.status(), *last_lines(folder.log_file, 30), sep="\n")
        # A run has its results before its job has recorded the end.
        finished = [f for f, s in zip(self.folders(), states, strict=True) if s == "finished"]
        wait_for(lambda: all(self.ends(folder)[-1:] != [""] for folder in finished))
        return states

    def folders(self):
        plan = self.plan
        return [plan.run_folder(run) for run in plan.runs]

    def wait_training(self, count=1, steps=1, seconds=600):
        """Wait until so many runs have trained so many steps in their newest start."""

        def going():
            found = []
            for folder in self.folders():
                held = attempts.read(folder)
                word = read_json(folder.status_file) or {}
                if held and not held[-1].end and word.get("state") == "running":
                    found += [folder] * (word.get("step", 0) >= held[-1].first_step + steps)
            return found if len(found) >= count else None

        return wait_for(going, "training", seconds)

    def job(self, folder):
        """Return the job of a run."""
        return attempts.read(folder)[-1].job

    def ends(self, folder):
        return [attempt.end for attempt in attempts.read(folder)]


def results(folder):
    return read_json(folder.results_file)["benchmarks"]


def assert_whole(folder):
    """Check that a run is finished, with each logged step once."""
    assert folder.status().state == "finished", folder.status()
    lines, _ = read_metrics(folder.metrics_file)
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == folder.status().steps


def check_all(runs, undisturbed):
    """Check that each run is finished, with the metrics of an uninterrupted run."""
    for run, folder in zip(runs.plan.runs, runs.folders(), strict=True):
        assert_whole(folder)
        assert results(folder) == undisturbed(run)


def finished_here(folder, config):
    """Return the same run, trained without interruption on this machine."""
    from densevit.runs.directory import RunFolder

    here = RunFolder(folder)
    here.create(config)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "densevit", "train", "--run-dir", str(folder)]
    subprocess.run(command, check=True, timeout=600, env=environment, capture_output=True)
    return here


def processes(folder):
    """Return the pids of the processes that were started for a run."""
    found = subprocess.run(
        ["pgrep", "-f", f"run-dir {folder.path}$"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def kill(pid, number=signal.SIGKILL):
    os.kill(pid, number)


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
