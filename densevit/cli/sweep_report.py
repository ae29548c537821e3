"""Report a sweep: write the report and print its table, or print one table alone."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from densevit.config.metrics import SMALLEST_EFFECT
from densevit.launch.launchers import observe
from densevit.sweep.plan import Plan
from densevit.utils.console import console_for_tables, say, warn
from densevit.utils.errors import UserError


class View(NamedTuple):
    """The table to print: one of the cells, or one of the axes in `rows` and `cols`.

    `metric` is None for the main one.
    """

    rows: Sequence[str] = ()
    cols: Sequence[str] = ()
    metric: str | None = None


def report_sweep(
    plan: Plan,
    references: Path | None = None,
    difference: float = SMALLEST_EFFECT,
    view: View | None = None,
    *,
    paper: bool = False,
) -> None:
    """Write the report on the finished runs; print its table, its conclusions and its files.

    references: the user's reference models for effective robustness.
    difference: the smallest difference that matters, in percentage points.
    view: a table to print instead of the cells' table.
    paper: also write a folder for a paper.
    """
    from densevit.results.paper.write import write_paper  # pandas and matplotlib: a second
    from densevit.results.tables import table

    console = console_for_tables()
    shown = None if view is None else _viewed(plan, view)  # first: it may raise a UserError
    written = _write(plan, references, difference, shown)
    if paper:
        write_paper(written.found, written.shown, written.folder)
    console.print(table.to_rich(shown or written.table))
    for line in written.conclusions:
        console.print(f"- {line}", highlight=False, soft_wrap=True)
    for name, line in written.changes.items():
        console.print(f"- frozen as {name}: {line}", highlight=False, soft_wrap=True)
    for name, file in (
        ("table", "table.md"), ("figure", "accuracy.png"), ("short", "report.md"),
        ("report", "report.html"), *([("paper", "paper")] if paper else []),
    ):  # fmt: skip
        console.print(f"{name:<7} {written.folder / file}", highlight=False, soft_wrap=True)


def refuse_unused(options: argparse.Namespace) -> None:
    """Reject flags that this format ignores."""
    to = f"--format {options.format}" if options.format else "--tracking-uri"
    if options.format == "html":
        unused, why = ["tracking_uri"], "a store lacks some of what the page shows"
    elif options.format or options.tracking_uri is not None:
        unused, why = ["references", "difference"], "it prints the table alone"
    else:
        return
    if options.paper:
        raise UserError(f"--paper: cannot be used with {to}: it is written with the whole report")
    unused += ["freeze"] if options.tracking_uri is not None else []
    for name in unused:
        if getattr(options, name) not in (None, ()):
            raise UserError(f"--{name.replace('_', '-')}: cannot be used with {to}: {why}")


def print_table(plan: Plan, view: View, form: str | None, store: str | None = None) -> None:
    """Print one table alone, as `md`, `csv`, `tex` or (None) for a terminal, from the run
    directories or from an MLflow store."""
    from densevit.results.tables import latex, table

    shown = _viewed(plan, view, store)
    if form is None:
        console_for_tables().print(table.to_rich(shown))
        return
    to_text = {"md": table.to_markdown, "csv": table.to_csv, "tex": latex.to_latex}[form]
    sys.stdout.write(to_text(shown))


def print_page(
    plan: Plan, references: Path | None, difference: float, view: View | None = None
) -> None:
    """Write the report, with the table of `view` if given, and print the path of its page."""
    shown = None if view is None else _viewed(plan, view)
    say(_write(plan, references, difference, shown).folder / "report.html")


def _write(plan: Plan, references: Path | None, difference: float, shown: Any) -> Any:
    """Write the report; into a temporary folder, with a notice, if the outputs are read-only."""
    from densevit.results.report import write

    states = observe(plan).runs
    try:
        return write.write(plan, references, difference, shown, states)
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix=f"{plan.name}-report-"))
        reason = f"{error.filename or plan.folder}: {error.strerror or error}"
        warn(f"{reason}; the report is in {folder} instead")
        return write.write(plan, references, difference, shown, states, folder)


def freeze_sweep(plan: Plan, name: str) -> None:
    """Freeze the current numbers under a name."""
    from densevit.results.collect.numbers import collect
    from densevit.results.tables import frozen_numbers

    # To stderr: stdout may hold a table that is redirected to a file.
    warn(f"{'frozen':<7} {frozen_numbers.freeze(plan, collect(plan), name)}")


def _viewed(plan: Plan, view: View, store: str | None = None) -> Any:
    """Return the table of the cells, or of the requested axes."""
    from densevit.results.collect.numbers import collect
    from densevit.results.stats.ranking import image_metric
    from densevit.results.tables.best_cells import marked_table
    from densevit.results.tables.format import check_metric
    from densevit.results.tables.main_table import cell_table
    from densevit.results.tables.pivot import pivot

    if store is None:
        frame = collect(plan)
    else:
        from densevit.results.collect.mlflow import from_mlflow  # mlflow: seconds

        frame = from_mlflow(store, plan.name)
    metric = image_metric(frame) if view.metric is None else view.metric
    if view.rows or view.cols:
        return pivot(plan, frame, view.rows, view.cols, metric)
    check_metric(frame, metric)
    return marked_table(cell_table(plan, frame, metric), frame)
