"""What a large sweep costs before anything of it trains: the time and the memory of its commands.

    python bench/sweep_scale.py [--only plan,help,count] [--runs N] [--cells N] [--json FILE]

    plan    `densevit-sweep plan` of many runs, none of which has begun: as text and as JSON
    help    `densevit --help` and `densevit-sweep --help`
    count   counting the cells of a grid far too large to run; memory is what the process's largest
            resident set grows by meanwhile

Every number is of a process of its own, and commands are timed whole, with the start of Python; the
first time of each, which reads its files from the disk, is left out. Prints a Markdown table of
medians over the rounds with the goal of each and the ratio to it: 1 and less is reached. `--json`
writes all of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
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
        command_row(f"{name} --help", [*words, "--help"], options.rounds, goal=0.5)
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


def write_sweep(folder: Path, cells: int, seeds: int) -> Path:
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
    file.write_text(json.dumps({"name": "scale", "grid": grid, "seeds": seeds}), encoding="utf-8")
    return file


def command_row(name: str, words: Sequence[str], rounds: int, goal: float) -> Row:
    """The seconds that `densevit WORDS` takes as a process."""
    command = [sys.executable, "-m", "densevit", *words]
    values = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        # Nothing is kept: the peak memory of a process begins with that of the one that starts it.
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        values.append(time.perf_counter() - start)
        if done.returncode:
            raise RunError(f"{name}: {done.stderr.strip()[-200:]}")
    return Row(name, "s", values[1:], goal)


def in_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of this module returns in a process that has done nothing before."""
    fresh = multiprocessing.get_context("spawn")  # a fork would inherit memory
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        return pool.submit(function, *arguments).result()


# Each takes an empty folder and the options, and gives its rows.
MEASUREMENTS: dict[str, Callable[[Path, argparse.Namespace], list[Row]]] = {
    "plan": plan,
    "help": help_texts,
    "count": count,
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
