"""Measure the commands of a large sweep before anything trains: their time and memory.

    python bench/sweep_scale.py [--only plan,help,...] [--runs N] [--jobs N]

    plan    `densevit-sweep plan` of many runs, none of which has begun: as text and as JSON
    help    `densevit --help` and `densevit-sweep --help`
    status  `densevit-sweep status` of many runs, three quarters of them finished and the others
            half done: as text and as JSON
    submit  `densevit-sweep FILE` of many runs to the installed Slurm (slurm/local-cluster.sh),
            whose jobs are then cancelled; the number of sbatch calls; the models are checked
            already, as from the second time on
    ray     the launcher ray against Ray Tune, between runs and in memory (ray_scale.py)
    job     the overhead of a job: the process that Slurm starts, around a run that has nothing
            to do, minus that run

Every number is from a separate process. Commands are timed whole, with the start of Python; the
first time of each, which reads its files from the disk, is left out. Prints a Markdown table of
medians over the rounds with the goal of each and the ratio to it; a ratio up to 1 reaches the goal.
`--json` writes all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import Row, in_own_process, selected, table, write_record

from densevit.utils.errors import EXIT_FAILED, EXIT_MISTAKE, RunError, UserError

SEEDS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("sweep_scale.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", default=",".join(MEASUREMENTS), metavar="NAMES", help="of %(default)s (all)")
    add("--runs", type=int, default=10_000, help="of the plan (%(default)s)")
    add("--jobs", type=int, default=1000, help="that are submitted (%(default)s)")
    add("--ray-runs", type=int, default=200, help="of one command on Ray (%(default)s)")
    add("--rounds", type=int, default=5, help="(%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    try:
        rows = measure(selected(options.only, MEASUREMENTS), options)
    except (UserError, RunError) as error:
        print(f"sweep_scale.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE if isinstance(error, UserError) else EXIT_FAILED
    print(table(rows))
    if options.json:
        write_record(options.json, "sweep_scale.py", given, rows=[row._asdict() for row in rows])
    return 0


def measure(names: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """Return the rows of each measurement, which has an empty folder for its files."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows += MEASUREMENTS[name](Path(folder), options)
    return rows


def plan(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure a plan whose runs have no folders yet."""
    file = write_sweep(folder, options.runs // SEEDS, SEEDS)
    outputs = ["--outputs", str(folder / "outputs")]
    label = f"plan of {options.runs:,} runs"
    return [
        command_row(name, ["sweep", "plan", str(file), *outputs, *flags], options.rounds, goal=1.0)
        for name, flags in ((label, []), (f"{label}, --json", ["--json"]))
    ]


def help_texts(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure the wait for a command's flags."""
    del folder
    return [
        command_row(f"{name} --help", [*arguments, "--help"], options.rounds, goal=0.3)
        for name, arguments in (("densevit", []), ("densevit-sweep", ["sweep"]))
    ]


def status(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure the status of a sweep in progress, from its run directories."""
    file = write_sweep(folder, options.runs // SEEDS, SEEDS)
    in_own_process(_write_runs, file, folder / "outputs")
    outputs = ["--outputs", str(folder / "outputs")]
    label = f"status of {options.runs:,} runs"
    return [
        command_row(name, ["sweep", "status", str(file), *outputs, *flags], options.rounds, 2.0)
        for name, flags in ((label, []), (f"{label}, --json", ["--json"]))
    ]


def _write_runs(file: Path, outputs: Path) -> None:
    from densevit.sweep.plan import make_plan

    plan = make_plan(file, outputs)
    numbers = json.dumps({"benchmarks": {"val": {"top1": 50.0, "top5": 90.0, "loss": 1.0, "n": 9}}})
    for number, run in enumerate(plan.runs):
        run_folder = plan.run_folder(run)
        run_folder.path.mkdir(parents=True)
        finished = number % 4 > 0
        record = {"state": "finished" if finished else "cancelled", "epoch": 50, "epochs": 100,
                  "step": 500, "steps": 1000, "spent": 3600.0, "updated": 1.0}  # fmt: skip
        run_folder.status_file.write_text(json.dumps(record))
        if finished:
            run_folder.results_file.write_text(numbers)


def submit(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure submitting many runs, each time into an empty outputs folder."""
    if shutil.which("sbatch") is None:
        raise UserError("submit: no sbatch on PATH; slurm/local-cluster.sh start makes a Slurm")
    settings: dict[str, Any] = {"dataset": "shapes", "cl_mode": "dense", "sampled_patches": 2}
    file = write_sweep(folder, options.jobs, 1, fixed=settings, resources={"hours": 1, "cpus": 1})
    counted = _count_calls(folder, "sbatch")
    values = []
    for number in range(min(options.rounds, 3) + 1):
        outputs = folder / f"outputs{number}"
        arguments = ["sweep", str(file), "--launcher", "slurm", "--outputs", str(outputs)]
        values += command_row("submit", arguments, 0, 1.0, path=counted).values
        arguments = ["sweep", "cancel", str(file), "--yes", "--outputs", str(outputs)]
        command_row("cancel", arguments, 0, 1.0)
    label = f"submitting {options.jobs:,} runs"
    arrays = len((folder / "sbatch.calls").read_text().splitlines()) / len(values)
    chunks = -(-options.jobs // 1001)  # Slurm's default MaxArraySize
    return [
        Row(label, "s", values[1:], goal=5.0),
        Row(f"{label}: calls of sbatch, one a kind and one an array", "", [arrays], 1 + chunks),
    ]


def _count_calls(folder: Path, program: str) -> str:
    """Return a PATH on which a program records its calls."""
    real, note = shutil.which(program), folder / f"{program}.calls"
    place = folder / "bin" / program
    place.parent.mkdir()
    place.write_text(f'#!/bin/sh\necho >>{shlex.quote(str(note))}\nexec {real} "$@"\n')
    place.chmod(0o755)
    return f"{place.parent}:{os.environ['PATH']}"


def job(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure the process that Slurm starts, around a run that is finished already."""
    run_folder, jobs_folder = in_own_process(_write_job, folder)
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SUBMITIT_FOLDER": str(jobs_folder)}
    task = f"from densevit.launch.slurm.job import Task; Task(({run_folder!r},))()"
    values = []
    for _ in range(options.rounds + 1):
        (Path(run_folder) / "attempts.json").unlink(missing_ok=True)  # a start like the first
        around = _seconds([sys.executable, "-c", task], slurm)
        alone = _seconds([sys.executable, "-m", "densevit", "train", "--run-dir", run_folder], {})
        values.append(around - alone)
    return [Row("a run as a job, less the run", "s", values[1:], goal=1.0)]


def _write_job(folder: Path) -> tuple[str, str]:
    from densevit.config.run_config import RunConfig
    from densevit.launch.slurm import submissions
    from densevit.launch.slurm.attempts import Limits
    from densevit.runs.directory import RunFolder
    from densevit.utils.files import write_json

    run = RunFolder(folder / "runs" / "one")
    run.create(RunConfig(cl_mode="none"))
    numbers = {"top1": 50.0, "top5": 90.0, "loss": 1.0, "n": 9}
    write_json(run.results_file, {"benchmarks": {"val": numbers}})
    run.write_status("finished")
    submission = submissions.Submission(
        folder=folder / "sweeps" / "one" / "submissions" / "one", sweep="one", user="me",
        resources={}, tasks=[["one"]], chunks=(submissions.Chunk("one", 0, 1, "7"),), canary=False,
        code="", limits=Limits(3, 5), signal_seconds=60,
    )  # fmt: skip
    submissions.write(submission)
    return str(run.path), str(submission.jobs_folder)


def _seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RunError(f"{shlex.join(command)}: {done.stderr.strip()[-200:]}")
    return time.perf_counter() - start


def write_sweep(folder: Path, cells: int, seeds: int, **parts: Any) -> Path:
    """Write a sweep file with `cells` cells, on up to three axes of at most 100 values."""
    grid, left = {}, cells
    for name, values in (
        ("temperature", [0.01 * n for n in range(1, 101)]),
        ("learning_rate", [1e-5 * n for n in range(1, 101)]),
        ("queue_size", list(range(1, 101))),
    ):
        grid[name] = values[:left]
        if not left or left % len(grid[name]):
            break
        left //= len(grid[name])
    if left != 1:
        raise UserError(
            f"{cells} cells: not the product of three axes of at most 100 values; use a round "
            "number, such as 5000"
        )
    file = folder / "sweep.yaml"
    record = {"name": "scale", "grid": grid, "seeds": seeds, **parts}
    file.write_text(json.dumps(record), encoding="utf-8")
    return file


def command_row(
    name: str, arguments: Sequence[str], rounds: int, goal: float, path: str | None = None
) -> Row:
    """Return the seconds of `densevit ARGUMENTS` as a process; `path` replaces PATH.

    It runs once more than `rounds`, and the first time is left out unless it is the only one.
    """
    command = [sys.executable, "-m", "densevit", *arguments]
    values = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        # Output is not kept: the peak memory of a process begins with that of its parent.
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PATH": path or os.environ["PATH"]},
        )  # fmt: skip
        values.append(time.perf_counter() - start)
        if done.returncode:
            raise RunError(f"{name}: {done.stderr.strip()[-200:]}")
    return Row(name, "s", values[1:] or values, goal)


def on_ray(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure the launcher ray: see `ray_scale.py`."""
    if find_spec("ray") is None:
        print("ray: left out, Ray is not installed: pip install 'densevit[ray]'", file=sys.stderr)
        return []
    import ray_scale

    return ray_scale.ray(folder, options)


# Each takes an empty folder and the options, and returns its rows.
MEASUREMENTS: dict[str, Callable[[Path, argparse.Namespace], list[Row]]] = {
    "plan": plan,
    "help": help_texts,
    "status": status,
    "submit": submit,
    "job": job,
    "ray": on_ray,
}


if __name__ == "__main__":
    sys.exit(main())
