"""What the sweep commands do and print, in the order in which a user sees it."""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table

from densevit.errors import EXIT_CARRY_ON, EXIT_FAILED, UserError
from densevit.rundir import Status
from densevit.sweep.apply import Work, check, decide, prepare
from densevit.sweep.grid import Run, cell_values, value_word
from densevit.sweep.plan import Plan, count_states


def run_sweep(plan: Plan, jobs: int, launcher: str, no_tracking: bool) -> int:
    """Execute what is not finished, mirror it to MLflow, report. Returns the exit code.

    0: all runs are finished. 1: some failed. 75: stopped by the user; the same command carries on.
    """
    if launcher != "local":
        raise UserError(
            f"{plan.spec.file}: launcher: {launcher} is not part of this version; "
            f"--launcher local runs the sweep on this machine"
        )
    console = console_for_tables()
    work = decide(plan)
    check(plan, work)
    prepare(plan, work)
    told = f"{len(plan.runs)} runs in {len(plan.grid.cells)} cells: "
    told += f"{len(work.done)} finished before, {len(work.to_run)} to run"
    console.print(f"{plan.name}: {told}", highlight=False)
    ids = [run.id for run in plan.runs]
    stopped = False
    with nullcontext() if no_tracking else _mirror(plan, ids):
        if work.to_run:
            stopped = _launch(plan, work, jobs, console)
        report_sweep(plan)
    if not no_tracking:
        _print_ui(plan, console)
    if stopped:
        console.print("stopped; the same command carries on", highlight=False)
        return EXIT_CARRY_ON
    unfinished = decide(plan).to_run
    if unfinished:
        console.print(f"{len(unfinished)} of {len(plan.runs)} runs are not finished", style="red")
    return EXIT_FAILED if unfinished else 0


def report_sweep(plan: Plan) -> None:
    """Write the report from what is finished so far, print its table and where it lies."""
    from densevit.results import report, tables  # pandas and matplotlib: a second

    console = console_for_tables()
    written = report.write(plan)
    console.print(tables.to_rich(written.table))
    for name, path in (
        ("table", written.table_md), ("figure", written.figure_png), ("report", written.report_md),
    ):  # fmt: skip
        console.print(f"{name:<7} {path}", highlight=False, soft_wrap=True)


def print_plan(plan: Plan) -> None:
    """The cells of a sweep, how many runs they make, and what was left out."""
    console = console_for_tables()
    if plan.spec.description:
        console.print(plan.spec.description.strip(), highlight=False)
    table = _axes_table(plan, "cell", "seeds", "finished")
    statuses = plan.statuses()
    by_cell: dict[str, list[Run]] = {}
    for run in plan.runs:
        by_cell.setdefault(run.cell, []).append(run)
    for cell, runs in by_cell.items():
        finished = sum(statuses[run.id].state == "finished" for run in runs)
        seeds = " ".join(str(run.seed) for run in runs)
        table.add_row(cell, *_axis_words(plan, runs[0]), seeds, str(finished))
    console.print(table)
    merged = f", {plan.grid.merged} combinations merged" if plan.grid.merged else ""
    console.print(
        f"{plan.name}: {len(by_cell)} cells x {len(plan.spec.seeds)} seeds = "
        f"{len(plan.runs)} runs{merged}",
        highlight=False,
    )
    for rule, count in plan.grid.excluded:
        console.print(f"excluded: {count} cells, {rule.where}: {rule.because}", highlight=False)


def print_status(plan: Plan, statuses: dict[str, Status]) -> None:
    """How many runs are in each state, and how far each one is."""
    console = console_for_tables()
    table = _axes_table(plan, "run", "seed", "state", "epoch")
    for run in plan.runs:
        status = statuses[run.id]
        epochs = f"{status.epoch}/{status.epochs}" if status.epochs else ""
        row = [run.id, *_axis_words(plan, run), str(run.seed), status.state, epochs]
        table.add_row(*row, style={"failed": "red", "running": "bold"}.get(status.state))
    console.print(table)
    counts = count_states(statuses)
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    console.print(f"{plan.name}: {told}", highlight=False)
    for run in plan.runs:
        if statuses[run.id].state == "failed":
            told = f"{run.id} failed: {statuses[run.id].message} ({plan.run_folder(run).log_file})"
            console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)


def _launch(plan: Plan, work: Work, jobs: int, console: Console) -> bool:
    """Execute the runs; whether the user stopped it."""
    from densevit.sweep.display import watching
    from densevit.sweep.launch.local import Interrupted, launch

    try:
        with watching(plan, len(work.to_run), console) as watch:
            launch(plan, work.to_run, jobs, watch)
    except Interrupted:
        return True
    return False


def _mirror(plan: Plan, ids: list[str]):  # noqa: ANN202
    from densevit.tracking import mirroring

    return mirroring(plan.outputs, ids, plan.name)


def _print_ui(plan: Plan, console: Console) -> None:
    from densevit.tracking import store_uri

    uri = shlex.quote(store_uri(plan.outputs))
    # By its path where the environment is not activated, so that the line can be pasted.
    mlflow = "mlflow" if shutil.which("mlflow") else str(Path(sys.executable).with_name("mlflow"))
    command = f"{shlex.quote(mlflow)} ui --backend-store-uri {uri} --host 127.0.0.1"
    console.print(f"{'MLflow':<7} {command}", highlight=False, soft_wrap=True)


def console_for_tables() -> Console:
    """A console that does not squeeze tables to 80 columns when it writes to a file or pipe."""
    # No markup: names and descriptions are the user's and may hold brackets.
    return Console(markup=False, width=None if sys.stdout.isatty() else 200)


def _axes_table(plan: Plan, first: str, *last: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (first, *plan.axes, *last):
        table.add_column(name, no_wrap=name == first, overflow="fold")
    return table


def _axis_words(plan: Plan, run: Run) -> list[str]:
    return [value_word(value) for value in cell_values(run.config, plan.axes).values()]
