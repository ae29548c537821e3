"""`densevit compare`: two cells of a sweep, or two runs, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from densevit.commandline import add_outputs, existing_run, find_run, points
from densevit.errors import UserError
from densevit.rundir import RunFolder, outputs_root


def add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        usage="densevit compare SWEEP A B [options]\n       densevit compare RUN RUN [options]",
        help="show two cells of a sweep, or two runs, side by side",
        description="Show what differs in the settings of two cells of a sweep, or of two runs, "
        "and what came of it: accuracy with the paired difference, costs and health.",
    )
    compare.set_defaults(call=_compare)
    compare.add_argument("first", metavar="SWEEP|RUN", help="a sweep's YAML file, or a run's id")
    compare.add_argument(
        "second", metavar="A",
        help="a cell: its label or the first words of it, its id or the beginning of it, or "
        "settings as cl_mode=dense,temperature=0.1; or another run",
    )  # fmt: skip
    compare.add_argument("third", metavar="B", nargs="?", help="another cell")
    compare.add_argument("--metric", default="top1", help="what is compared (top1)")
    compare.add_argument(
        "--difference", type=points, metavar="POINTS",
        help="the smallest difference that matters to you (1.0; of nll 0.02)",
    )  # fmt: skip
    add_outputs(compare)


def _compare(options: argparse.Namespace) -> int:
    outputs = outputs_root(options.outputs)
    if options.third is None:
        if Path(options.first).is_file():
            raise UserError(f"{options.first}: of a sweep, name two cells: SWEEP A B")
        folders = [_run(text, outputs) for text in (options.first, options.second)]
        from densevit.results.compare import compare_runs

        _show(compare_runs(*folders, options.metric, _wanted(options)))
        return 0
    from densevit.sweep.plan import make_plan

    plan = make_plan(Path(options.first), outputs)
    from densevit.results.compare import compare_cells
    from densevit.results.find import find_cell

    cells = [find_cell(plan, text) for text in (options.second, options.third)]
    _show(compare_cells(plan, *cells, options.metric, _wanted(options)))
    return 0


def _wanted(options: argparse.Namespace) -> float:
    from densevit.results.tables import matters

    return matters(options.metric) if options.difference is None else options.difference


def _run(text: str, outputs: Path) -> RunFolder:
    """A run by its id, its directory, or the beginning of its id."""
    if find_run(text, outputs) is None and text and "/" not in text:
        ids = sorted(path.name for path in (outputs / "runs").glob("*") if path.is_dir())
        fitting = [name for name in ids if name.startswith(text)]
        if len(fitting) > 1:
            raise UserError(f"{text}: fits several runs: {', '.join(fitting[:5])}")
        text = fitting[0] if fitting else text
    return existing_run(text, outputs)


def _show(found: Any) -> None:
    from densevit.results.sheet import to_rich
    from densevit.sweep.show import console_for_tables, say

    for line in found.lines:
        say(line)
    if found.settings is None:
        say("no setting differs")
    for sheet in (found.settings, found.numbers, found.beside):
        if sheet is not None:
            console_for_tables().print(to_rich(sheet))
