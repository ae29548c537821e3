"""The end of a sweep command: write the report, print how to open MLflow, return the exit code."""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from densevit.cli.sweep_report import report_sweep
from densevit.launch.decide import decide
from densevit.launch.launchers import observe
from densevit.runs.directory import outputs_root
from densevit.sweep.plan import Plan
from densevit.utils.console import console_for_tables, say
from densevit.utils.errors import EXIT_FAILED


def mirror(
    plan: Plan, no_tracking: bool, *, starting: bool = False
) -> AbstractContextManager[None]:
    """Return a context that mirrors runs to MLflow; `starting` if runs start or go on in it."""
    if no_tracking:
        return nullcontext()
    from densevit.tracking.mirror_process import mirroring

    return mirroring(plan.outputs, [run.id for run in plan.runs], plan.name, starting=starting)


def finish_sweep(plan: Plan, no_tracking: bool) -> int:
    """Report, print how to open MLflow, and return the exit code: 1 if runs are unfinished."""
    report_sweep(plan)
    if not no_tracking:
        _print_ui(plan)
    actions = decide(plan, observe(plan), foreground=True)
    unfinished = len(plan.runs) - len(actions.done) - len(actions.stopped)
    if unfinished:
        message = f"{unfinished} of {len(plan.runs)} runs are not finished"
        console_for_tables().print(message, style="red")
    return EXIT_FAILED if unfinished else 0


def _print_ui(plan: Plan) -> None:
    # With its path if the environment is not activated, so that the printed line works.
    on_path = shutil.which("densevit") is not None
    program = "densevit" if on_path else str(Path(sys.executable).with_name("densevit"))
    command = [program, "ui", plan.name]
    if plan.outputs != outputs_root(None):
        command += ["--outputs", str(plan.outputs)]
    say(f"{'MLflow':<7} {shlex.join(command)}")
