"""What stands at the end of a sweep command: the mirror, the report, and what is left to do."""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from densevit.errors import EXIT_FAILED
from densevit.sweep.apply import Work, decide
from densevit.sweep.plan import Plan
from densevit.sweep.show import console_for_tables, say
from densevit.sweep.state import observe


def counted(plan: Plan, work: Work) -> str:
    """What there is and what is to be done, in one line."""
    told = f"{len(plan.runs)} runs in {len(plan.grid.cells)} cells: "
    told += f"{len(work.done)} finished before, "
    if work.active:
        told += f"{len(work.active)} running or queued, "
    if work.unknown:
        told += f"{len(work.unknown)} unknown, "
    return told + f"{len(work.to_run)} to run"


def mirror(plan: Plan, no_tracking: bool) -> Any:
    """A context in which the plan's runs are mirrored to MLflow."""
    if no_tracking:
        return nullcontext()
    from densevit.tracking import mirroring

    return mirroring(plan.outputs, [run.id for run in plan.runs], plan.name)


def finish_sweep(plan: Plan, no_tracking: bool) -> int:
    """Report, say how MLflow is looked at, and return the exit code of what there is."""
    report_sweep(plan)
    if not no_tracking:
        _print_ui(plan)
    unfinished = len(plan.runs) - len(decide(plan, observe(plan), "local").done)
    if unfinished:
        told = f"{unfinished} of {len(plan.runs)} runs are not finished"
        console_for_tables().print(told, style="red")
    return EXIT_FAILED if unfinished else 0


def report_sweep(plan: Plan, references: Path | None = None) -> None:
    """Write the report from what is finished so far, print its table and where it lies.

    `references` are models of the user's own for the lines of effective robustness.
    """
    from densevit.results import report, tables  # pandas and matplotlib: a second

    console = console_for_tables()
    written = report.write(plan, references)
    console.print(tables.to_rich(written.table))
    for name, path in (
        ("table", written.table_md), ("figure", written.figure_png), ("report", written.report_md),
    ):  # fmt: skip
        console.print(f"{name:<7} {path}", highlight=False, soft_wrap=True)


def _print_ui(plan: Plan) -> None:
    from densevit.tracking import store_uri

    uri = shlex.quote(store_uri(plan.outputs))
    # By its path where the environment is not activated, so that the line can be pasted.
    mlflow = "mlflow" if shutil.which("mlflow") else str(Path(sys.executable).with_name("mlflow"))
    say(f"{'MLflow':<7} {shlex.quote(mlflow)} ui --backend-store-uri {uri} --host 127.0.0.1")
