"""The list of launchers, and what is asked of all of them.

A run may have a job of one launcher while a command names another, so the state of a sweep is
observed by every launcher that has jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densevit.launch.launcher import JobQueue, Launcher
from densevit.launch.local import LOCAL
from densevit.launch.ray.launcher import RAY
from densevit.launch.run_state import Observed, RunState, classify, read_recorded, unless_damaged
from densevit.launch.slurm.launcher import SLURM
from densevit.sweep.early_stop import check_early
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan, make_plan
from densevit.utils.errors import UserError, nearest

LAUNCHERS: tuple[Launcher, ...] = (LOCAL, SLURM, RAY)


def find_launcher(name: str, source: str) -> Launcher:
    """Return the launcher of a name; `source` is the file and key, or the flag, that names it.

    Errors: `UserError` with the nearest valid name.
    """
    for launcher in LAUNCHERS:
        if launcher.name == name:
            return launcher
    valid = [launcher.name for launcher in LAUNCHERS]
    raise UserError(f"{source}: {name!r} is not valid; {nearest(name, valid)}")


def read_plan(file: Path, outputs: Path, changes: Sequence[str] = ()) -> Plan:
    """Return the plan of a sweep file as `make_plan` does, and check the launcher that it names."""
    plan = make_plan(file, outputs, changes)
    find_launcher(plan.spec.launcher, f"{file}: launcher")
    return plan


def choose_launcher(plan: Plan, name: str | None, profile: str | None) -> Launcher:
    """Return the launcher of a sweep: the file's, unless a flag names one.

    Errors: `UserError` for an early-stopping rule or a profile that the launcher cannot use.
    """
    if name is None:
        launcher = find_launcher(plan.spec.launcher, f"{plan.spec.file}: launcher")
    else:
        launcher = find_launcher(name, "--launcher")
    if plan.spec.early_stop is not None and not launcher.ends_early:
        able = " or ".join(other.name for other in LAUNCHERS if other.ends_early)
        raise UserError(f"{plan.spec.file}: early_stop: only the launcher {able} ends runs early, "
                        f"and this one is {launcher.name}; use --launcher {able}")  # fmt: skip
    check_early(plan)
    if profile is not None and not launcher.profiles:
        able = " or ".join(other.name for other in LAUNCHERS if other.profiles)
        raise UserError(f"--profile: only the launcher {able} reads a profile, and this one is "
                        f"{launcher.name}; use --launcher {able}")  # fmt: skip
    return launcher


def job_queues() -> list[JobQueue]:
    """Return the queues of the launchers whose runs are jobs."""
    return [launcher.jobs for launcher in LAUNCHERS if launcher.jobs is not None]


def observe(plan: Plan) -> Observed:
    """Return the state of each run of a plan, from its directory and from the launchers' queues.

    A state that nobody can know is `unknown` and never `failed`: a cluster that does not answer, or
    a lock that cannot be seen from this machine, says nothing about a run.
    """
    recorded = {run.id: read_recorded(plan, run) for run in plan.runs}
    states: dict[str, RunState] = {}
    silent = []
    for queue in job_queues():
        found = queue.observe(plan, recorded)
        silent += [found.silent] if found.silent else []
        for run_id, state in found.runs.items():
            if run_id not in states or _submitted(states[run_id]) < _submitted(state):
                states[run_id] = state

    def state_of(run: Run) -> RunState:
        if run.id in states:
            return states[run.id]
        return unless_damaged(lambda: classify(plan.run_folder(run), recorded[run.id]))

    return Observed({run.id: state_of(run) for run in plan.runs}, "; ".join(silent))


def _submitted(state: RunState) -> float:
    return state.submission.created if state.submission else 0.0
