"""`densevit-sweep retry`: start failed runs again, with other resources if given."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from densevit.cli.sweep_run import execute
from densevit.launch.launchers import choose_launcher, observe
from densevit.sweep.overrides import changes_runs, parse_changes, valid_keys
from densevit.sweep.plan import Plan
from densevit.sweep.select_runs import select
from densevit.utils.console import say
from densevit.utils.errors import UserError, nearest


def retry_sweep(plan: Plan, options: argparse.Namespace) -> int:
    """Start failed runs again, with other resources if given. Return the exit code."""
    _check_known(plan, options.changes)
    launcher = choose_launcher(plan, options.launcher, options.profile)
    observed = observe(plan)
    chosen = select(plan, options.runs) if options.runs else list(plan.runs)
    startable = ("failed", "cancelled", "lost", "pending") if options.runs else ("failed", "lost")
    chosen = [
        run
        for run in chosen
        if observed.runs[run.id].state in startable
        and (not options.causes or observed.runs[run.id].cause in options.causes)
    ]
    if not chosen:
        say("nothing to start again: no such run has failed")
        return 0
    return execute(plan, launcher, options, only={run.id for run in chosen})


def _check_known(plan: Plan, changes: Sequence[str]) -> None:
    """Check that changes mean runs that the sweep has: `retry` starts no new ones."""
    if (plan.folder / "plan.json").exists():
        return
    for key in filter(changes_runs, parse_changes(changes)):
        hint = nearest(key, [name for name in valid_keys() if not changes_runs(name)])
        raise UserError(f"--set {key}: is part of the run's identity and cannot change; {hint}")
