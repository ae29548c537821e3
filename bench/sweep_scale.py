"""What a large sweep costs before anything of it trains: the time and the memory of its commands.

    python bench/sweep_scale.py [--only plan,help,...] [--runs N] [--cells N] [--jobs N]

    plan    `densevit-sweep plan` of many runs, none of which has begun: as text and as JSON
    help    `densevit --help` and `densevit-sweep --help`
    count   counting the cells of a grid far too large to run; memory is what the process's largest
            resident set grows by meanwhile
    status  `densevit-sweep status` of many runs, three quarters of them finished and the others
            in the middle: as text and as JSON
    submit  `densevit-sweep FILE` of many runs to the Slurm that is there (slurm/local-cluster.sh),
            whose jobs are then cancelled; how often sbatch was called; models that were checked
            before, as from the second time on
    ray     what the launcher ray costs beside Ray Tune, between runs and in memory (ray_scale.py)
    job     what a run costs as a job, beside the run: the process that Slurm starts, around a run
            that has nothing to do, less that run

Every number is of a process of its own, and commands are timed whole, with the start of Python; the
first time of each, which reads its files from the disk, is left out. Prints a Markdown table of
medians over the rounds with the goal of each and the ratio to it: 1 and less is reached. `--json`
writes all of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from densevit.errors import EXIT_FAILED, EXIT_MISTAKE, RunError, UserError, nearest

SEEDS = 2
MEBIBYTE = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes there, KiB elsewhere


class Row(NamedTuple):
    """A measured quantity, a value a round, and what it should be at most."""

    name: str
    unit: str
    values: list[float]
    goal: float

    @property
    def ratio(self) -> float:
        return statistics.median(self.values) / self.goal


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("sweep_scale.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", default=",".join(MEASUREMENTS), metavar="NAMES", help="of %(default)s (all)")
    add("--runs", type=int, default=10_000, help="of the plan (%(default)s)")
    add("--cells", type=int, default=1_000_000, help="that are counted (%(default)s)")
    add("--jobs", type=int, default=1000, help="that are submitted (%(default)s)")
    add("--ray-runs", type=int, default=200, help="of one command on Ray (%(default)s)")
    add("--rounds", type=int, default=5, help="(%(default)s; of counting at most 3)")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    try:
        rows = measure(_names(options.only), options)
    except (UserError, RunError) as error:
        print(f"sweep_scale.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE if isinstance(error, UserError) else EXIT_FAILED
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(_result(given, rows), indent=2) + "\n", encoding="utf-8")
    return 0


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in MEASUREMENTS:
            raise UserError(f"--only: unknown name {name!r}; {nearest(name, MEASUREMENTS)}")
    return names


def _result(given: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    import torch  # here, when everything is measured: a process started from a large one is slower
    from contrast_arm import machine

    return {
        "command": shlex.join(["python", "bench/sweep_scale.py", *given]),
        "machine": machine(torch.device("cpu")),
        "rows": [{**row._asdict(), "ratio": row.ratio} for row in rows],
    }


def measure(names: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """The rows of each measurement, which has an empty folder for its files."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows += MEASUREMENTS[name](Path(folder), options)
    return rows


def plan(folder: Path, options: argparse.Namespace) -> list[Row]:
    """A plan whose runs have no folders yet."""
    file = write_sweep(folder, options.runs // SEEDS, SEEDS)
    outputs = ["--outputs", str(folder / "outputs")]
    told = f"plan of {options.runs:,} runs"
    return [
        command_row(name, ["sweep", "plan", str(file), *outputs, *flags], options.rounds, goal=1.0)
        for name, flags in ((told, []), (f"{told}, --json", ["--json"]))
    ]


def help_texts(folder: Path, options: argparse.Namespace) -> list[Row]:
    """What a person waits for who only wants to know the flags."""
    del folder
    return [
        command_row(f"{name} --help", [*words, "--help"], options.rounds, goal=0.3)
        for name, words in (("densevit", []), ("densevit-sweep", ["sweep"]))
    ]


def count(folder: Path, options: argparse.Namespace) -> list[Row]:
    """The cells of a grid of which no list is made."""
    file = write_sweep(folder, options.cells, SEEDS)
    found = [in_own_process(_counted, file) for _ in range(min(options.rounds, 3))]
    told = f"counting {options.cells:,} cells"
    return [
        Row(told, "s", [seconds for seconds, _ in found], goal=15.0),
        Row(f"{told}: memory", "MiB", [mib for _, mib in found], goal=128.0),
    ]


def _counted(file: Path) -> tuple[float, float]:
    """The seconds that counting takes, and the MiB that the process grows by."""
    from densevit.sweep.grid import count
    from densevit.sweep.spec import read_spec

    spec = read_spec(file)
    before, start = _peak_mib(), time.perf_counter()
    count(spec)
    return time.perf_counter() - start, _peak_mib() - before


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE


def status(folder: Path, options: argparse.Namespace) -> list[Row]:
    """A sweep in the middle, as its run directories tell it."""
    file = write_sweep(folder, options.runs // SEEDS, SEEDS)
    in_own_process(_write_runs, file, folder / "outputs")
    outputs = ["--outputs", str(folder / "outputs")]
    told = f"status of {options.runs:,} runs"
    return [
        command_row(name, ["sweep", "status", str(file), *outputs, *flags], options.rounds, 2.0)
        for name, flags in ((told, []), (f"{told}, --json", ["--json"]))
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
    """Many runs into the queue, each time into an empty outputs folder."""
    if shutil.which("sbatch") is None:
        raise UserError("submit: there is no Slurm; slurm/local-cluster.sh start makes one")
    settings: dict[str, Any] = {"dataset": "shapes", "cl_mode": "dense", "sampled_patches": 2}
    file = write_sweep(folder, options.jobs, 1, fixed=settings, resources={"hours": 1, "cpus": 1})
    counted = _count_calls(folder, "sbatch")
    values = []
    for number in range(min(options.rounds, 3) + 1):
        outputs = folder / f"outputs{number}"
        words = ["sweep", str(file), "--launcher", "slurm", "--outputs", str(outputs)]
        values += command_row("submit", words, 0, 1.0, path=counted).values
        words = ["sweep", "cancel", str(file), "--yes", "--outputs", str(outputs)]
        command_row("cancel", words, 0, 1.0)
    told = f"submitting {options.jobs:,} runs"
    arrays = len((folder / "sbatch.calls").read_text().splitlines()) / len(values)
    chunks = -(-options.jobs // 1001)  # Slurm's own MaxArraySize
    return [
        Row(told, "s", values[1:], goal=5.0),
        Row(f"{told}: calls of sbatch, one a kind and one an array", "", [arrays], 1 + chunks),
    ]


def _count_calls(folder: Path, program: str) -> str:
    """A PATH on which a program notes that it was called."""
    real, note = shutil.which(program), folder / f"{program}.calls"
    place = folder / "bin" / program
    place.parent.mkdir()
    place.write_text(f'#!/bin/sh\necho >>{shlex.quote(str(note))}\nexec {real} "$@"\n')
    place.chmod(0o755)
    return f"{place.parent}:{os.environ['PATH']}"


def job(folder: Path, options: argparse.Namespace) -> list[Row]:
    """The process that Slurm starts, around a run that is finished already."""
    run_folder, jobs_folder = in_own_process(_write_job, folder)
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SUBMITIT_FOLDER": str(jobs_folder)}
    task = f"from densevit.sweep.launch.slurm.job import Task; Task(({run_folder!r},))()"
    values = []
    for _ in range(options.rounds + 1):
        (Path(run_folder) / "attempts.json").unlink(missing_ok=True)  # a start like the first
        around = _seconds([sys.executable, "-c", task], slurm)
        alone = _seconds([sys.executable, "-m", "densevit", "train", "--run-dir", run_folder], {})
        values.append(around - alone)
    return [Row("a run as a job, less the run", "s", values[1:], goal=1.0)]


def _write_job(folder: Path) -> tuple[str, str]:
    from densevit.config import RunConfig
    from densevit.rundir import RunFolder, write_json
    from densevit.sweep.launch.slurm import records
    from densevit.sweep.launch.slurm.attempts import Limits

    run = RunFolder(folder / "runs" / "one")
    run.create(RunConfig(cl_mode="none"))
    numbers = {"top1": 50.0, "top5": 90.0, "loss": 1.0, "n": 9}
    write_json(run.results_file, {"benchmarks": {"val": numbers}})
    run.write_status("finished")
    submission = records.Submission(
        folder=folder / "sweeps" / "one" / "submissions" / "one", sweep="one", user="me",
        resources={}, tasks=[["one"]], chunks=(records.Chunk("one", 0, 1, "7"),), canary=False,
        code="", limits=Limits(3, 5), signal_seconds=60,
    )  # fmt: skip
    records.write(submission)
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
    """A sweep file of so many cells, whose axes have a hundred values as long as there are more."""
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
        told = "are no three axes of at most 100 values; take a round number, like 5000"
        raise UserError(f"{cells} cells: {told}")
    file = folder / "sweep.yaml"
    wanted = {"name": "scale", "grid": grid, "seeds": seeds, **parts}
    file.write_text(json.dumps(wanted), encoding="utf-8")
    return file


def command_row(
    name: str, words: Sequence[str], rounds: int, goal: float, path: str | None = None
) -> Row:
    """The seconds that `densevit WORDS` takes as a process, once more than `rounds` unless these
    are 0; with another PATH."""
    command = [sys.executable, "-m", "densevit", *words]
    values = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        # Nothing is kept: the peak memory of a process begins with that of the one that starts it.
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PATH": path or os.environ["PATH"]},
        )  # fmt: skip
        values.append(time.perf_counter() - start)
        if done.returncode:
            raise RunError(f"{name}: {done.stderr.strip()[-200:]}")
    return Row(name, "s", values[1:] or values, goal)


def in_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of this module returns in a process that has done nothing before."""
    fresh = multiprocessing.get_context("spawn")  # a fork would inherit memory
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        return pool.submit(function, *arguments).result()


def on_ray(folder: Path, options: argparse.Namespace) -> list[Row]:
    """See `ray_scale.py`."""
    if find_spec("ray") is None:
        print("ray: left out, Ray is not installed: pip install 'densevit[ray]'", file=sys.stderr)
        return []
    import ray_scale

    return ray_scale.ray(folder, options)


# Each takes an empty folder and the options, and gives its rows.
MEASUREMENTS: dict[str, Callable[[Path, argparse.Namespace], list[Row]]] = {
    "plan": plan,
    "help": help_texts,
    "count": count,
    "status": status,
    "submit": submit,
    "job": job,
    "ray": on_ray,
}


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| | value | goal | value / goal |", "|---|--:|--:|--:|"]
    for row in rows:
        value = f"{statistics.median(row.values):.3g} {row.unit}"
        lines.append(f"| {row.name} | {value} | {row.goal:g} {row.unit} | {row.ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
