"""What `densevit-sweep FILE` and `retry` do, in the order in which a user sees it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from densevit.config import is_execution
from densevit.errors import EXIT_CARRY_ON, UserError, nearest
from densevit.layers import Layer, build
from densevit.sweep.apply import Work, check, decide, prepare
from densevit.sweep.early import check_early
from densevit.sweep.grid import Run
from densevit.sweep.launch.ray.cluster import address
from densevit.sweep.outcome import counted, finish_sweep, mirror
from densevit.sweep.plan import Plan, make_plan
from densevit.sweep.select import select
from densevit.sweep.show import console_for_tables, print_dry_run, say
from densevit.sweep.spec import Resources
from densevit.sweep.state import observe


def run_sweep(plan: Plan, options: argparse.Namespace) -> int:
    """Execute what is not finished, mirror it to MLflow, report. Returns the exit code.

    0: all runs are finished; on Slurm, unless it is watched, also: they are all in the queue.
    1: some failed. 75: stopped by the user; the same command carries on.
    """
    launcher = _launcher(plan, options)
    if options.budget and not options.dry_run:
        from densevit.sweep import costing

        costing.parse_budget(options.budget)
        found = costing.cost(plan, launcher, options.profile, options.jobs, again=False)
        costing.keep_to(options.budget, found)
    if launcher == "slurm":
        from densevit.sweep.on_slurm import run_on_slurm

        return run_on_slurm(plan, options)
    work = decide(plan, observe(plan), launcher)
    if options.dry_run:
        print_dry_run(plan, work)
        return 0
    return _run_and_stay(plan, work, launcher, options)


def retry_sweep(plan: Plan, options: argparse.Namespace) -> int:
    """Start failed runs again, with other resources if these are given. Returns the exit code."""
    launcher = _launcher(plan, options)
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
    plan = _changed(plan, {run.id for run in chosen}, options.changes)
    if launcher == "slurm":
        from densevit.sweep.on_slurm import run_on_slurm

        return run_on_slurm(plan, options, only={run.id for run in chosen})
    work = decide(plan, observed, launcher)
    ids = {run.id for run in chosen}
    work = replace(work, to_run=tuple(run for run in work.to_run if run.id in ids))
    return _run_and_stay(plan, work, launcher, options)


def _launcher(plan: Plan, options: argparse.Namespace) -> str:
    launcher = options.launcher or plan.spec.launcher
    check_early(plan, launcher)
    if options.profile and launcher != "slurm":
        raise UserError(f"--profile: is of a Slurm cluster, and the launcher is {launcher}; "
                        f"--launcher slurm chooses it")  # fmt: skip
    return launcher


def _run_and_stay(plan: Plan, work: Work, launcher: str, options: argparse.Namespace) -> int:
    """Execute the runs under a launcher that stays until they have ended."""
    while True:
        check(plan, work, here=launcher == "local" or address(plan) == "local")
        with _ready(plan, work, launcher):
            prepare(plan, work)
            say(f"{plan.name}: {counted(plan, work)}")
            with mirror(plan, options.no_tracking, starting=bool(work.to_run)):
                stopped = bool(work.to_run) and _launch(plan, work, launcher, options.jobs)
        # What a search proposes next depends on what these have reached.
        further = None if stopped else _further(plan)
        if further is None:
            break
        plan, work = further, decide(further, observe(further), launcher)
    with mirror(plan, options.no_tracking):
        code = finish_sweep(plan, options.no_tracking)
    if stopped:
        say("stopped; the same command carries on")
    return EXIT_CARRY_ON if stopped else code


def _further(plan: Plan) -> Plan | None:
    """The plan with the next round of a search; None where there is none."""
    if plan.spec.search is None or plan.spec.search.method == "random":
        return None
    found = make_plan(plan.spec.file, plan.outputs)
    return found if len(found.runs) > len(plan.runs) else None


def _ready(plan: Plan, work: Work, launcher: str) -> Any:
    """A context in which there is what executes the runs, and large enough for each of them."""
    if launcher == "local" or not work.to_run:
        return nullcontext()
    from densevit.sweep.launch.ray.cluster import connected

    return connected(plan, work.to_run)


def _launch(plan: Plan, work: Work, launcher: str, jobs: int) -> bool:
    """Execute the runs; whether the user stopped it."""
    from densevit.sweep.display import watching
    from densevit.sweep.launch.staying import Interrupted, launching

    try:
        with (
            launching(plan.folder),
            watching(plan, len(work.to_run), console_for_tables()) as watch,
        ):
            if launcher == "ray":
                from densevit.sweep.launch.ray.driver import launch as on_ray

                on_ray(plan, work.to_run, watch)
            else:
                from densevit.sweep.launch.local import launch

                launch(plan, work.to_run, jobs, watch)
    except Interrupted:
        return True
    return False


def _changed(plan: Plan, ids: set[str], changes: Sequence[str]) -> Plan:
    """The plan with some runs' resources, or the way they are executed, changed by `KEY=VALUE`."""
    from densevit import yamlfile

    resources: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for change in changes:
        key, _, text = change.partition("=")
        value = yamlfile.parse(f"value: {text}", f"--set {shlex.quote(change)}").get("value")
        if value is None:
            raise UserError(f"--set {change}: has no value; write KEY=VALUE")
        if key.startswith("resources."):
            resources[key.removeprefix("resources.")] = value
        elif key in _execution_fields():
            fields[key] = value
        else:
            valid = [*_execution_fields(), *(f"resources.{n}" for n in Resources.model_fields)]
            raise UserError(f"--set {key}: {_why_not(key)}; {nearest(key, valid)}")
    wanted = _resources(resources)

    def change(run: Run) -> Run:
        if run.id not in ids:
            return run
        layer = Layer("--set", fields)
        config = build([Layer("run", run.config.model_dump()), layer]) if fields else run.config
        nearer = run.nearer | wanted.keys()
        return replace(run, config=config, resources={**run.resources, **wanted}, nearer=nearer)

    runs = tuple(map(change, plan.runs))
    return replace(plan, grid=replace(plan.grid, runs=runs))


def _resources(given: dict[str, Any]) -> dict[str, Any]:
    from pydantic import ValidationError

    from densevit.layers import explain

    if isinstance(given.get("mem"), int):  # 64 MB, as Slurm counts them
        given["mem"] = str(given["mem"])
    try:
        return Resources(**given).model_dump(exclude_none=True)
    except ValidationError as error:
        told = explain(error.errors()[0], Resources.model_fields)
        raise UserError(f"--set resources.{told}") from None


def _execution_fields() -> list[str]:
    from densevit.config import FIELDS

    return [name for name in FIELDS if is_execution(name)]


def _why_not(key: str) -> str:
    from densevit.config import FIELDS

    return "would make it another run" if key in FIELDS else "unknown"
