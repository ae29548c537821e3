"""Measure the report of a large sweep: the time until its numbers, tables and figures exist.

    python bench/results.py [--only gather,costs,curves,report,size] [--runs N] [--rounds N]

    gather  the table of all numbers and the coverage of many finished runs
    costs   the cost of each of them, from its logged metrics
    curves  the learning curves of the cells that a report shows
    report  the whole report: numbers, statistics, tables, figures, its pages
    size    the report of 200 runs: MiB of the page that holds everything

The runs are made up
(bench/madeup.py); their files were written just before, so that no disk is measured. Every number
is the seconds of the call alone, in a separate process that has imported the module and made the
plan. Prints a Markdown table of medians over the rounds with the goal of each and the ratio to it;
a ratio up to 1 reaches the goal. `--json` writes all of it.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import Row, in_own_process, seconds_of, selected, table, write_record
from madeup import make_sweep

from densevit.cli.parser import positive
from densevit.sweep.plan import Plan, make_plan
from densevit.utils.errors import EXIT_MISTAKE, UserError

SEEDS = 5
SHOWN_CELLS = 40
CURVES = ["val/top1", "train/loss", "health/patch_rank", "health/match_precision"]
SIZED_RUNS = 200


def gather(plan: Plan) -> None:
    from densevit.results.collect import numbers

    numbers.gather(plan)


def costs(plan: Plan) -> None:
    from densevit.results.collect import numbers

    numbers.costs(plan)


def curves(plan: Plan) -> None:
    from densevit.results.collect import numbers

    numbers.curves(plan, CURVES, [run.cell for run in plan.grid.cells[:SHOWN_CELLS]])


def report(plan: Plan) -> None:
    from densevit.results.report import write as module

    module.write(plan)


# The call, the module that is imported before it, and the goal: seconds for 10,000 runs.
TIMED: dict[str, tuple[Callable[[Plan], None], str, float]] = {
    "gather": (gather, "densevit.results.collect.numbers", 4.0),
    "costs": (costs, "densevit.results.collect.numbers", 4.0),
    "curves": (curves, "densevit.results.collect.numbers", 1.0),
    "report": (report, "densevit.results.report.write", 10.0),
}
NAMES = (*TIMED, "size")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("results.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", default=",".join(NAMES), metavar="NAMES", help="of %(default)s (all)")
    add("--runs", type=positive, default=10_000, help="at least 5 (%(default)s)")
    add("--rounds", type=positive, default=3, help="(%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    try:
        rows = measure(selected(options.only, NAMES), options)
    except UserError as error:
        print(f"results.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    print(table(rows))
    if options.json:
        write_record(options.json, "results.py", given, rows=[row._asdict() for row in rows])
    return 0


def measure(names: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """Return the rows of each measurement; all use the same runs."""
    rows = []
    timed = [name for name in names if name in TIMED]
    if timed:
        with tempfile.TemporaryDirectory() as folder:
            plan = make_sweep(Path(folder), max(1, options.runs // SEEDS), SEEDS)
            for name in timed:
                rows.append(seconds(plan, name, options))
    return rows + ([size()] if "size" in names else [])


def seconds(plan: Plan, name: str, options: argparse.Namespace) -> Row:
    """Return the seconds of a call."""
    values = []
    for _ in range(options.rounds):
        shutil.rmtree(plan.folder, ignore_errors=True)  # what an earlier report has written
        values.append(in_own_process(_seconds, plan.spec.file, plan.outputs, name))
    return Row(f"{name} of {len(plan.runs):,} runs", "s", values, TIMED[name][2])


def size() -> Row:
    """Return the size of the page in MiB; the goal is 5 million bytes."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_sweep(Path(folder), SIZED_RUNS // SEEDS, SEEDS)
        in_own_process(_seconds, plan.spec.file, plan.outputs, "report")
        size = (plan.folder / "report" / "report.html").stat().st_size
    return Row(f"page of {SIZED_RUNS} runs", "MiB", [size / 2**20], 5e6 / 2**20)


def _seconds(file: Path, outputs: Path, name: str) -> float:
    call, module, _ = TIMED[name]
    importlib.import_module(module)
    plan = make_plan(file, outputs)
    return seconds_of(lambda: call(plan))


if __name__ == "__main__":
    sys.exit(main())
