"""`densevit-sweep retry`: start failed runs again, with other resources if given."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from densevit.cli.sweep_run import execute
from densevit.config.resolve import Layer, build
from densevit.config.run_config import is_execution
from densevit.launch.launchers import choose_launcher, observe
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.select_runs import select
from densevit.sweep.spec import Resources
from densevit.utils.console import say
from densevit.utils.errors import UserError, nearest


def retry_sweep(plan: Plan, options: argparse.Namespace) -> int:
    """Start failed runs again, with other resources if given. Return the exit code."""
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
    ids = {run.id for run in chosen}
    return execute(_changed(plan, ids, options.changes), launcher, options, only=ids)


def _changed(plan: Plan, ids: set[str], changes: Sequence[str]) -> Plan:
    """Return the plan with resources or execution fields of some runs changed by `KEY=VALUE`."""
    from densevit.config import yaml_file

    resources: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for assignment in changes:
        key, _, text = assignment.partition("=")
        source = f"--set {shlex.quote(assignment)}"
        value = yaml_file.parse(f"value: {text}", source).get("value")
        if value is None:
            raise UserError(f"--set {assignment}: has no value; write KEY=VALUE")
        if key.startswith("resources."):
            resources[key.removeprefix("resources.")] = value
        elif key in _execution_fields():
            fields[key] = value
        else:
            valid = [*_execution_fields(), *(f"resources.{n}" for n in Resources.model_fields)]
            raise UserError(f"--set {key}: {_why_not(key)}; {nearest(key, valid)}")
    request = _resources(resources)

    def change(run: Run) -> Run:
        if run.id not in ids:
            return run
        layer = Layer("--set", fields)
        config = build([Layer("run", run.config.model_dump()), layer]) if fields else run.config
        nearer = run.nearer | request.keys()
        return replace(run, config=config, resources={**run.resources, **request}, nearer=nearer)

    runs = tuple(map(change, plan.runs))
    return replace(plan, grid=replace(plan.grid, runs=runs))


def _resources(given: dict[str, Any]) -> dict[str, Any]:
    from pydantic import ValidationError

    from densevit.config.error_messages import explain

    if isinstance(given.get("mem"), int):  # a number without a unit is in MB, as in Slurm
        given["mem"] = str(given["mem"])
    try:
        return Resources(**given).model_dump(exclude_none=True)
    except ValidationError as error:
        message = explain(error.errors()[0], Resources.model_fields)
        raise UserError(f"--set resources.{message}") from None


def _execution_fields() -> list[str]:
    from densevit.config.run_config import FIELDS

    return [name for name in FIELDS if is_execution(name)]


def _why_not(key: str) -> str:
    from densevit.config.run_config import FIELDS

    return "is part of the run's identity and cannot change" if key in FIELDS else "unknown"
