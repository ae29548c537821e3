"""Measure the speed of a sweep's runs in one short Slurm job."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from densevit.launch import code_snapshot
from densevit.launch.launcher import CostSetting, LaunchOptions
from densevit.launch.machine import MEASURE, Place
from densevit.launch.slurm import commands, groups, sbatch
from densevit.launch.slurm.profile import Profile, usable_profile
from densevit.sweep.plan import Plan
from densevit.utils.console import warn
from densevit.utils.errors import RunError, UserError
from densevit.utils.files import last_lines

POLL_SECONDS = 2.0
MOST_SILENT_POLLS = 60  # in a row, before giving up
PROBE_HOURS = 1.0


def cost_setting(plan: Plan, options: LaunchOptions) -> CostSetting:
    """Return the plan with the profile's default resources, and the place of its probes."""
    profile = usable_profile(plan, options)
    defaults = profile.resources.model_dump(exclude_none=True)
    runs = tuple(replace(run, resources={**defaults, **run.resources}) for run in plan.runs)
    plan = replace(plan, grid=replace(plan.grid, runs=runs))
    return CostSetting(plan, _short_job(plan, profile), profile.throttle)


def _short_job(plan: Plan, profile: Profile) -> Place:
    """Return a place that runs the probes in one Slurm job. It requests what the largest runs do,
    reduced to one node and one of its GPUs with that GPU's share of the CPUs."""
    kinds = [group.resources for group in groups.groups(plan.runs, profile)]
    largest = max(kinds, key=lambda kind: (kind.get("gpus", 0), kind.get("cpus", 0)))
    request = {name: value for name, value in largest.items() if name not in ("nodes", "pack")}
    gpus = max(1, int(request.get("gpus", 0)))
    if "cpus" in request:
        request["cpus"] = max(1, request["cpus"] // gpus)
    request["hours"] = min(PROBE_HOURS, request.get("hours", PROBE_HOURS))
    if request.get("gpus"):
        request["gpus"] = 1

    def run(source: Path, target: Path) -> int:
        job = _submit(plan, profile, request, source, target)
        code = _wait_for(job)
        if code:
            warn("\n".join(last_lines(source.parent / f"{job}_0_log.out", 8)))
        return code

    parts = ["Slurm", profile.partition, profile.constraint, profile.gpu_type]
    parts += [f"{request.get('gpus', 0)} GPUs", f"{request.get('cpus', 1)} CPUs"]
    return Place(", ".join(part for part in parts if part), run)


def measure_in_job(source: str, target: str) -> int:
    """Run the probes in a subprocess; this is the body of the Slurm job."""
    threads = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    command = [sys.executable, "-m", MEASURE, source, target]
    return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603


def _submit(
    plan: Plan, profile: Profile, request: Mapping[str, Any], source: Path, target: Path
) -> str:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    # The current code, no snapshot: this command waits until the job has ended.
    code = str(code_snapshot.PACKAGE.parent)
    given = sbatch.parameters(request, profile, f"{plan.name[:60]}-probe", code)
    given["additional_parameters"].pop("hold")
    executor = SlurmExecutor(source.parent, python=profile.python)
    executor.update_parameters(**given)
    try:
        with sbatch.quietly():
            return str(executor.submit(measure_in_job, str(source), str(target)).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"{profile.file or 'sbatch'}: {commands.error_text(str(error))}") from None


def _wait_for(job: str) -> int:
    """Return the exit code of a job, 0 or 1. If this command is interrupted, it cancels the job."""
    warn(f"measuring in job {job}")
    silent_polls = 0
    try:
        while True:
            try:
                found = commands.queue([commands.user()]).get(job)
                silent_polls = 0
            except commands.NoAnswer as error:
                silent_polls += 1
                if silent_polls > MOST_SILENT_POLLS:
                    raise RunError(f"Slurm does not answer any more: {error}") from None
            else:
                if found is None or not found.active:
                    return 0 if found is None or found.state == "COMPLETED" else 1
            time.sleep(POLL_SECONDS)
    except BaseException:
        with suppress(commands.NoAnswer):
            commands.cancel([job])
        raise
