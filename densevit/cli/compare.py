"""`densevit compare`: print two cells of a sweep, or two runs, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.cli.parser import add_changes, add_outputs, existing_run, find_run, points
from densevit.runs.directory import RunFolder, outputs_root
from densevit.utils.errors import UserError

if TYPE_CHECKING:
    from densevit.results.compare.comparison import Comparison


def add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        usage="densevit compare SWEEP A B [options]\n       densevit compare RUN RUN [options]",
        help="show two cells of a sweep, or two runs, side by side",
        description="Show the settings in which two cells of a sweep, or two runs, differ, and "
        "their results: accuracy with the paired difference, costs and health.",
    )
    compare.set_defaults(call=_compare)
    compare.add_argument("first", metavar="SWEEP|RUN", help="a sweep's YAML file, or a run's id")
    compare.add_argument(
        "second", metavar="A",
        help="a cell: its label or first words of it, its id or the beginning of it, or settings, "
        "such as cl_mode=dense,temperature=0.1; or another run",
    )  # fmt: skip
    compare.add_argument("third", metavar="B", nargs="?", help="another cell")
    compare.add_argument("--metric", help="default: top1 or, of several classes, map")
    compare.add_argument(
        "--difference", type=points, metavar="POINTS",
        help="the smallest difference that matters to you (1.0; for nll 0.02)",
    )  # fmt: skip
    add_changes(compare)
    add_outputs(compare)


def _compare(options: argparse.Namespace) -> int:
    outputs = outputs_root(options.outputs)
    if options.third is None:
        if Path(options.first).is_file():
            raise UserError(f"{options.first}: a sweep needs two cells: densevit compare SWEEP A B")
        first, second = (_run(text, outputs) for text in (options.first, options.second))
        from densevit.results.compare.runs import compare_runs

        _print(compare_runs(first, second, options.metric, _smallest_effect(options)))
        return 0
    from densevit.launch.check_images import check_measured
    from densevit.sweep.plan import make_plan

    plan = make_plan(Path(options.first), outputs, options.changes)
    check_measured(plan)
    from densevit.results.compare.cells import compare_cells
    from densevit.results.compare.find_cell import find_cell

    a, b = (find_cell(plan, text) for text in (options.second, options.third))
    _print(compare_cells(plan, a, b, options.metric, _smallest_effect(options)))
    return 0


def _smallest_effect(options: argparse.Namespace) -> float:
    from densevit.results.tables.format import matters

    metric = options.metric or "top1"
    return matters(metric) if options.difference is None else options.difference


def _run(text: str, outputs: Path) -> RunFolder:
    """Return a run by its id, its directory, or the beginning of its id."""
    if find_run(text, outputs) is None and text and "/" not in text:
        ids = sorted(path.name for path in (outputs / "runs").glob("*") if path.is_dir())
        fitting = [name for name in ids if name.startswith(text)]
        if len(fitting) > 1:
            raise UserError(f"{text}: fits several runs: {', '.join(fitting[:5])}")
        text = fitting[0] if fitting else text
    return existing_run(text, outputs)


def _print(comparison: Comparison) -> None:
    from densevit.results.tables.table import to_rich
    from densevit.utils.console import console_for_tables, say

    for line in comparison.lines:
        say(line)
    if comparison.settings is None:
        say("no setting differs")
    for table in (comparison.settings, comparison.numbers, comparison.cost_and_health):
        if table is not None:
            console_for_tables().print(to_rich(table))
