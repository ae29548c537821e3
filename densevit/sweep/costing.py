"""What a sweep costs, measured where its runs will be: on this machine, or by a short job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from densevit.errors import RunError, UserError
from densevit.probe import Place, this_machine
from densevit.rundir import last_lines
from densevit.sweep import snapshot
from densevit.sweep.apply import decide
from densevit.sweep.estimate import (
    Estimate,
    check_budget,
    estimate,
    estimate_lines,
    estimate_record,
    measure,
    parse_budget,
    speeds_file,
    wanted_probes,
)
from densevit.sweep.launch.slurm import cluster, submit
from densevit.sweep.launch.slurm.profile import Profile, find_profile
from densevit.sweep.plan import Plan
from densevit.sweep.state import observe

POLL_SECONDS = 2.0
PATIENT_LOOKS = 60  # without an answer
PROBE_HOURS = 1.0


def cost(
    plan: Plan, launcher: str, profile_name: str | None, jobs: int, *, again: bool
) -> Estimate:
    """Measure what was not measured yet, all with `again`, and estimate what is to be run.

    Errors: `UserError` for a run that cannot work, and for what Slurm refuses.
    """
    profile = _profile(plan, launcher, profile_name)
    place = _short_job(plan, profile) if launcher == "slurm" else this_machine(jobs)
    plan = _asking(plan, profile)
    if again:
        speeds_file(plan).unlink(missing_ok=True)
    speeds = measure(plan, wanted_probes(plan), speeds_file(plan), place)
    to_run = decide(plan, observe(plan), launcher).to_run
    throttle = profile.throttle if launcher == "slurm" else jobs
    return estimate(plan, speeds, throttle, to_run)


def keep_to(budget: str, estimated: Estimate) -> None:
    """Errors: `UserError` when what is to be run costs more, or the budget is none."""
    check_budget(estimated, parse_budget(budget))


def print_estimate(estimated: Estimate, *, as_json: bool) -> None:
    print(
        json.dumps(estimate_record(estimated)) if as_json else "\n".join(estimate_lines(estimated))
    )


def _profile(plan: Plan, launcher: str, name: str | None) -> Profile:
    if launcher != "slurm":
        return Profile()
    return find_profile(name or plan.spec.profile, plan.spec.file)


def _asking(plan: Plan, profile: Profile) -> Plan:
    """The plan with what a cluster's profile adds to the resources of its runs."""
    defaults = profile.resources.model_dump(exclude_none=True)
    runs = (replace(run, resources={**defaults, **run.resources}) for run in plan.runs)
    return replace(plan, grid=replace(plan.grid, runs=tuple(runs)))


def _short_job(plan: Plan, profile: Profile) -> Place:
    """Probes in one job on the cluster: with one of each node's GPUs, and its share of the rest,
    of the runs that ask for most.
    """
    cluster.require()
    kinds = [group.resources for group in submit.groups(plan.runs, profile)]
    wanted = dict(max(kinds, key=lambda kind: (kind.get("gpus", 0), kind.get("cpus", 0))))
    gpus = max(1, int(wanted.get("gpus", 0)))
    for name in ("nodes", "pack"):
        wanted.pop(name, None)
    if "cpus" in wanted:
        wanted["cpus"] = max(1, wanted["cpus"] // gpus)
    wanted["hours"] = min(PROBE_HOURS, wanted.get("hours", PROBE_HOURS))
    if wanted.get("gpus"):
        wanted["gpus"] = 1

    def run(source: Path, target: Path) -> int:
        job = _submit(plan, profile, wanted, source, target)
        code = _wait_for(job)
        if code:
            print("\n".join(last_lines(source.parent / f"{job}_0_log.out", 8)), file=sys.stderr)
        return code

    parts = ["Slurm", profile.partition, profile.constraint, profile.gpu_type]
    parts += [f"{wanted.get('gpus', 0)} GPUs", f"{wanted.get('cpus', 1)} CPUs"]
    return Place(", ".join(part for part in parts if part), run)


def measure_there(source: str, target: str) -> int:
    """What the short job does: the probes in a process of their own."""
    threads = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    command = [sys.executable, "-m", "densevit.probe", source, target]
    return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603


def _submit(plan: Plan, profile: Profile, wanted: dict, source: Path, target: Path) -> str:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    # The code as it is now: it is measured at once.
    code = str(snapshot.PACKAGE.parent)
    given = submit.parameters(wanted, profile, f"{plan.name[:60]}-probe", code)
    given["additional_parameters"].pop("hold")
    executor = SlurmExecutor(source.parent, python=profile.python)
    executor.update_parameters(**given)
    try:
        with submit.quietly():
            return executor.submit(measure_there, str(source), str(target)).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"{profile.file or 'sbatch'}: {cluster.words(str(error))}") from None


def _wait_for(job: str) -> int:
    """The exit code of a job, 0 or 1; the job ends with this command."""
    print(f"measuring in job {job}", file=sys.stderr, flush=True)
    silent = 0
    try:
        while True:
            try:
                found = cluster.queue([cluster.user()]).get(job)
                silent = 0
            except cluster.NoAnswer as error:
                silent += 1
                if silent > PATIENT_LOOKS:
                    raise RunError(f"Slurm does not answer any more: {error}") from None
            else:
                if found is None or not found.active:
                    return 0 if found is None or found.state == "COMPLETED" else 1
            time.sleep(POLL_SECONDS)
    except BaseException:
        with suppress(cluster.NoAnswer):
            cluster.cancel([job])
        raise
