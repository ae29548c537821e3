"""What a report of a large sweep costs: the time until its numbers, tables and figures are there.

    python bench/results.py [--only gather,costs,curves,report,size] [--runs N] [--changed N]

    gather  the table of all numbers and the coverage of many finished runs
    costs   what each of them has cost, from the metrics that it has logged
    curves  the learning curves of those cells of them that a report shows
    report  the whole report: numbers, statistics, tables, figures, its pages
    size    the report of 200 runs: MiB of the page that holds everything

Each but `size` is measured cold, when nothing was kept of an earlier look, and again after a few
runs have changed: the last ones, as in a sweep that still runs, and none of the baseline's. The
runs are made up (bench/madeup.py); their files were written just before, so that a disk is not
measured. Every number is the seconds of the call alone, in a process of its own that has imported
what it needs and made the plan. Prints a Markdown table of medians over the rounds with the goal of
each and the ratio to it: 1 and less is reached. `--json` writes all of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from madeup import make_sweep, write_runs
from sweep_scale import Row, table

from densevit.commandline import positive
from densevit.errors import EXIT_MISTAKE, UserError, nearest
from densevit.sweep.plan import Plan, make_plan

SEEDS = 5
SHOWN_CELLS = 40
CURVES = ["val/top1", "train/loss", "health/patch_rank", "health/match_precision"]
SIZED_RUNS = 200
LONG_AGO = 1.0  # Unix seconds


class Goal(NamedTuple):
    """Seconds, for 10,000 runs and when 10 of them have changed."""

    cold: float
    changed: float


def gather(plan: Plan) -> None:
    from densevit.results import collect

    collect.gather(plan)


def costs(plan: Plan) -> None:
    from densevit.results import collect

    collect.costs(plan)


def curves(plan: Plan) -> None:
    from densevit.results import collect

    collect.curves(plan, CURVES, [run.cell for run in plan.grid.cells[:SHOWN_CELLS]])


def report(plan: Plan) -> None:
    from densevit.results import report as module

    module.write(plan)


# What is called, the module that is imported before, and the goal.
TIMED: dict[str, tuple[Callable[[Plan], None], str, Goal]] = {
    "gather": (gather, "densevit.results.collect", Goal(4.0, 0.8)),
    "costs": (costs, "densevit.results.collect", Goal(4.0, 0.8)),
    "curves": (curves, "densevit.results.collect", Goal(1.0, 0.2)),
    "report": (report, "densevit.results.report", Goal(10.0, 2.0)),
}
NAMES = (*TIMED, "size")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("results.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", default=",".join(NAMES), metavar="NAMES", help="of %(default)s (all)")
    add("--runs", type=positive, default=10_000, help="at least 5 (%(default)s)")
    add("--changed", type=positive, default=10, help="of these runs (%(default)s)")
    add("--rounds", type=positive, default=3, help="(%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    try:
        rows = measure(_names(options.only), options)
    except UserError as error:
        print(f"results.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(_result(given, rows), indent=2) + "\n", encoding="utf-8")
    return 0


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in NAMES:
            raise UserError(f"--only: unknown name {name!r}; {nearest(name, NAMES)}")
    return names


def _result(given: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    import torch  # here, when everything is measured: a process started from a large one is slower
    from contrast_arm import machine

    return {
        "command": shlex.join(["python", "bench/results.py", *given]),
        "machine": machine(torch.device("cpu")),
        "rows": [{**row._asdict(), "ratio": row.ratio} for row in rows],
    }


def measure(names: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """The rows of each measurement; all look at the same runs."""
    rows = []
    timed = [name for name in names if name in TIMED]
    if timed:
        with tempfile.TemporaryDirectory() as folder:
            plan = _aged(make_sweep(Path(folder), max(1, options.runs // SEEDS), SEEDS))
            for name in timed:
                rows += both(plan, name, options)
    return rows + ([size()] if "size" in names else [])


def both(plan: Plan, name: str, options: argparse.Namespace) -> list[Row]:
    """The seconds of a call, cold and after some runs have changed."""
    _, _, goal = TIMED[name]
    cold, changed = [], []
    for number in range(options.rounds):
        shutil.rmtree(plan.folder, ignore_errors=True)
        cold.append(_timed(plan, name))
        write_runs(plan, plan.runs[-options.changed :], seed=number + 1)
        changed.append(_timed(plan, name))
        _aged(plan)
    told = f"{name} of {len(plan.runs):,} runs"
    return [
        Row(told, "s", cold, goal.cold),
        Row(f"{told}, {min(options.changed, len(plan.runs))} changed", "s", changed, goal.changed),
    ]


def size() -> Row:
    """How large the page is, in MiB; the goal is 5 million bytes."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_sweep(Path(folder), SIZED_RUNS // SEEDS, SEEDS)
        _timed(plan, "report")
        size = (plan.folder / "report" / "report.html").stat().st_size
    return Row(f"page of {SIZED_RUNS} runs", "MiB", [size / 2**20], 5e6 / 2**20)


def _aged(plan: Plan) -> Plan:
    """Runs look as if they had ended long ago: what has just changed is looked at again."""
    for run in plan.runs:
        folder = plan.run_folder(run)
        for file in (folder.status_file, folder.results_file, folder.metrics_file):
            os.utime(file, (LONG_AGO, LONG_AGO))
    return plan


def _timed(plan: Plan, name: str) -> float:
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        return pool.submit(_seconds, plan.spec.file, plan.outputs, name).result()


def _seconds(file: Path, outputs: Path, name: str) -> float:
    call, module, _ = TIMED[name]
    importlib.import_module(module)
    plan = make_plan(file, outputs)
    start = time.perf_counter()
    call(plan)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
