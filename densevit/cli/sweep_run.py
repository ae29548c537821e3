"""Run a sweep, as `densevit-sweep FILE` and `retry` do."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace

from densevit.cli.sweep_finish import finish_sweep, mirror
from densevit.launch.decide import counted, decide
from densevit.launch.foreground import Interrupted, launching
from densevit.launch.launcher import Launcher, LaunchOptions
from densevit.launch.launchers import choose_launcher, observe
from densevit.launch.preflight import check
from densevit.launch.prepare import prepare
from densevit.launch.run_state import Observed
from densevit.monitor.notify import notify, notifying_errors
from densevit.monitor.plan_table import print_dry_run
from densevit.monitor.status import status_printer
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan, make_plan
from densevit.sweep.texts import typed
from densevit.utils.console import console_for_tables, count, say
from densevit.utils.errors import EXIT_CARRY_ON, Unreachable, UserError


def run_sweep(plan: Plan, options: argparse.Namespace) -> int:
    """Execute the unfinished runs, mirror them to MLflow, report. Return the exit code.

    0: all runs are finished; with jobs and without --watch also if all are in the queue.
    1: some failed. 75: stopped by the user; the same command resumes.
    """
    launcher = choose_launcher(plan, options.launcher, options.profile)
    settings = launch_options(options)
    if options.dry_run:
        actions = decide(plan, observe(plan), foreground=launcher.foreground)
        print_dry_run(plan, actions, launcher.check(plan, actions.to_run, settings))
        return 0
    if options.budget:
        from densevit.cost.budget import check_budget, parse_budget
        from densevit.cost.sweep_cost import cost

        budget = parse_budget(options.budget)
        check_budget(cost(plan, launcher, settings, again=False), budget)
    return execute(plan, launcher, options)


def execute(
    plan: Plan, launcher: Launcher, options: argparse.Namespace, only: Collection[str] | None = None
) -> int:
    """Execute the unfinished runs; with `only`, those of these ids. Return the exit code."""
    follow = _run_in_foreground if launcher.foreground else _submit
    return follow(plan, launcher, options, only)


def launch_options(options: argparse.Namespace) -> LaunchOptions:
    """Return the flags that are meant for a launcher."""
    return LaunchOptions(
        options.jobs, options.profile, options.live_code, not options.no_canary,
        not options.no_tracking, options.replace,
    )  # fmt: skip


def _run_in_foreground(
    plan: Plan, launcher: Launcher, options: argparse.Namespace, only: Collection[str] | None
) -> int:
    """Execute runs with a launcher that waits until they have ended."""
    started, stopped = True, False
    try:
        started = not _all_finished(_start(plan, launcher, options, only)[1])
        # The next proposals of a search depend on the results of these runs.
        while further := _further(plan):
            plan, started = further, True
            _start(plan, launcher, options, None)
    except Interrupted:
        stopped = True
    with mirror(plan, options.no_tracking):
        code = finish_sweep(plan, options.no_tracking)
    if stopped:
        say("stopped; run the same command to resume")
    if started:
        notify(plan, "stopped" if stopped else "failed" if code else "finished")
    return EXIT_CARRY_ON if stopped else code


def _all_finished(observed: Observed) -> bool:
    return all(run.state == "finished" for run in observed.runs.values())


def _submit(
    plan: Plan, launcher: Launcher, options: argparse.Namespace, only: Collection[str] | None
) -> int:
    """Submit runs to a launcher that does not wait for them and, with `--watch`, follow them."""
    left, observed = _start(plan, launcher, options, only)
    if _all_finished(observed):
        with mirror(plan, options.no_tracking):
            return finish_sweep(plan, options.no_tracking)
    if not options.watch:
        say(f"status: {typed(plan, 'status')}    cancel: {typed(plan, 'cancel')}")
        return 0
    try:
        with mirror(plan, options.no_tracking, starting=True):
            with notifying_errors(plan):
                _watch(plan, launcher, options, left)
            code = finish_sweep(plan, options.no_tracking)
        notify(plan, "failed" if code else "finished")
        return code
    except KeyboardInterrupt:
        say("stopped watching; the jobs go on, and the same command watches them again")
        return EXIT_CARRY_ON


def _start(
    plan: Plan, launcher: Launcher, options: argparse.Namespace, only: Collection[str] | None
) -> tuple[Sequence[str], Observed]:
    """Observe the runs, check and prepare those to start, and launch them.

    Return the ids of runs that wait until the launcher takes more, and the states before.
    Errors: `Interrupted` if the user stopped a launcher in the foreground.
    """
    settings, queue = launch_options(options), launcher.jobs
    with queue.submitting(plan, settings) if queue else nullcontext():
        observed = observe(plan)
        actions = decide(plan, observed, foreground=launcher.foreground)
        if only is not None:
            actions = replace(actions, to_run=tuple(r for r in actions.to_run if r.id in only))
        runs = actions.to_run
        if observed.silent:
            say(f"{observed.silent}; state unknown: {count(len(actions.unknown), 'run')}")
        if not (runs or launcher.foreground):
            say(f"{plan.name}: {counted(plan, actions)}")
            return (), observed
        launcher.check(plan, runs, settings)  # impossible resources are reported first
        check(plan, actions, here=launcher.here(plan))
        with launcher.connected(plan, runs) if runs else nullcontext():
            prepare(plan, actions)
            say(f"{plan.name}: {counted(plan, actions)}")
            left = _launch(plan, launcher, settings, runs)
    return left, observed


def _launch(
    plan: Plan, launcher: Launcher, settings: LaunchOptions, runs: tuple[Run, ...]
) -> Sequence[str]:
    if not launcher.foreground:  # jobs have mirrors of their own
        return launcher.launch(plan, runs, settings, lambda progress: None)
    from densevit.monitor.progress_bars import watching

    with mirror(plan, not settings.tracking, starting=bool(runs)):
        if not runs:
            return ()
        console = console_for_tables()
        with (
            notifying_errors(plan),
            launching(plan.folder),
            watching(plan, len(runs), console) as watch,
        ):
            return launcher.launch(plan, runs, settings, watch)


def _further(plan: Plan) -> Plan | None:
    """Return the plan with the next round of a search; None if there is no further round."""
    if plan.spec.search is None or plan.spec.search.method == "random":
        return None
    found = make_plan(plan.spec.file, plan.outputs, plan.spec.changes)
    return found if len(found.runs) > len(plan.runs) else None


def _watch(
    plan: Plan, launcher: Launcher, options: argparse.Namespace, left: Sequence[str]
) -> None:
    """Show the states until no run is running or queued; submit runs that the job limit held back.

    Runs that fail or are cancelled meanwhile are not restarted: the next command does that.
    """
    show = status_printer(plan)
    while True:
        observed = observe(plan)
        show(observed)
        states = {run.state for run in observed.runs.values()}
        if not left and states.isdisjoint({"running", "queued", "unknown"}):
            return
        time.sleep(options.every)
        with suppress(Unreachable):  # the next round tries again
            if left:
                left = _submit_later(plan, launcher, options, left)
            elif launcher.jobs:
                launcher.jobs.attend(plan, observed)


def _submit_later(
    plan: Plan, launcher: Launcher, options: argparse.Namespace, left: Sequence[str]
) -> Sequence[str]:
    """Submit runs that were beyond the limit of jobs; return those left, none if refused."""
    try:
        return _start(plan, launcher, options, left)[0]
    except UserError as error:
        say(f"not submitted: {count(len(left), 'run')}: {error}")
        return ()
