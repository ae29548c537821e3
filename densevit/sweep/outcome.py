"""What stands at the end of a sweep command: the mirror, the report, and what is left to do."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from densevit.errors import EXIT_FAILED
from densevit.rundir import outputs_root
from densevit.sweep.apply import Work, decide
from densevit.sweep.plan import Plan
from densevit.sweep.show import console_for_tables, say
from densevit.sweep.state import observe

WANTED = 1.0  # points of accuracy: a difference that matters, if nobody says another


class View(NamedTuple):
    """Which table is wanted: of the cells, or of the axes named as `rows` and `cols`."""

    rows: Sequence[str] = ()
    cols: Sequence[str] = ()
    metric: str = "top1"


def counted(plan: Plan, work: Work) -> str:
    """What there is and what is to be done, in one line."""
    told = f"{len(plan.runs)} runs in {len(plan.grid.cells)} cells: "
    told += f"{len(work.done)} finished before, "
    if work.stopped:
        told += f"{len(work.stopped)} stopped early, "
    if work.active:
        told += f"{len(work.active)} running or queued, "
    if work.unknown:
        told += f"{len(work.unknown)} unknown, "
    return told + f"{len(work.to_run)} to run"


def mirror(plan: Plan, no_tracking: bool, *, starting: bool = False) -> Any:
    """A context in which the plan's runs are mirrored to MLflow; `starting` some, or watching."""
    if no_tracking:
        return nullcontext()
    from densevit.tracking.beside import mirroring

    return mirroring(plan.outputs, [run.id for run in plan.runs], plan.name, starting=starting)


def finish_sweep(plan: Plan, no_tracking: bool) -> int:
    """Report, say how MLflow is looked at, and return the exit code of what there is."""
    report_sweep(plan)
    if not no_tracking:
        _print_ui(plan)
    work = decide(plan, observe(plan), "local")
    unfinished = len(plan.runs) - len(work.done) - len(work.stopped)
    if unfinished:
        told = f"{unfinished} of {len(plan.runs)} runs are not finished"
        console_for_tables().print(told, style="red")
    return EXIT_FAILED if unfinished else 0


def report_sweep(
    plan: Plan, references: Path | None = None, wanted: float = WANTED, view: View | None = None
) -> None:
    """Write the report from what is finished so far, print its table, its answer and where it lies.

    `references` are models of the user's own for the lines of effective robustness, `wanted` is the
    difference in points that matters, `view` another table to print than that of the cells.
    """
    from densevit.results import report, sheet  # pandas and matplotlib: a second

    console = console_for_tables()
    shown = None if view is None else _viewed(plan, view)  # first, for a mistake in it
    written = report.write(plan, references, wanted, shown)
    console.print(sheet.to_rich(shown or written.table))
    for line in written.answers:
        console.print(f"- {line}", highlight=False, soft_wrap=True)
    for name, line in written.moved.items():
        console.print(f"- frozen as {name}: {line}", highlight=False, soft_wrap=True)
    for name, path in (
        ("table", written.table_md), ("figure", written.figure_png), ("short", written.report_md),
        ("report", written.report_html),
    ):  # fmt: skip
        console.print(f"{name:<7} {path}", highlight=False, soft_wrap=True)


def print_table(plan: Plan, view: View, form: str | None, store: str | None = None) -> None:
    """Print one table, and nothing else, as `md`, `csv` or `tex`, or as a terminal shows it; of the
    run directories, or of an MLflow store."""
    from densevit.results import latex, sheet

    shown = _viewed(plan, view, store)
    if form is None:
        console_for_tables().print(sheet.to_rich(shown))
        return
    write = {"md": sheet.to_markdown, "csv": sheet.to_csv, "tex": latex.to_latex}[form]
    sys.stdout.write(write(shown))


def print_page(
    plan: Plan, references: Path | None, wanted: float, view: View | None = None
) -> None:
    """Write the report, with the table of `view` if there is one, and print where its page lies."""
    from densevit.results import report

    asked = None if view is None else _viewed(plan, view)
    print(report.write(plan, references, wanted, asked).report_html)


def freeze_sweep(plan: Plan, name: str) -> None:
    """Keep the numbers that there are now under a name."""
    from densevit.results import ledger
    from densevit.results.collect import collect

    # Beside what is printed: a table may go into a file.
    print(f"{'frozen':<7} {ledger.freeze(plan, collect(plan), name)}", file=sys.stderr)


def _viewed(plan: Plan, view: View, store: str | None = None) -> Any:
    """The table of the cells, or of the axes that are asked for, as a sheet."""
    from densevit.results import tables
    from densevit.results.best import marked_sheet
    from densevit.results.collect import collect
    from densevit.results.pivot import pivot

    if store is None:
        frame = collect(plan)
    else:
        from densevit.results.mlflow_runs import from_mlflow  # mlflow: seconds

        frame = from_mlflow(store, plan.name)
    if view.rows or view.cols:
        return pivot(plan, frame, view.rows, view.cols, view.metric)
    tables.check_metric(frame, view.metric)
    return marked_sheet(tables.cell_table(plan, frame, view.metric), frame)


def _print_ui(plan: Plan) -> None:
    # By its path where the environment is not activated, so that the line can be pasted.
    found = shutil.which("densevit") is not None
    program = "densevit" if found else str(Path(sys.executable).with_name("densevit"))
    words = [program, "ui", plan.name]
    if plan.outputs != outputs_root(None):
        words += ["--outputs", str(plan.outputs)]
    say(f"{'MLflow':<7} {shlex.join(words)}")
