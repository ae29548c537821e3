"""A launcher as a record of functions; `launchers` lists them.

A new launcher is a file with such a record, a line in `launchers.py` and a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from densevit.launch.foreground import Watch
from densevit.launch.machine import Place, this_machine
from densevit.launch.run_state import Observed, Recorded
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan


@dataclass(frozen=True)
class LaunchOptions:
    """The flags of a command that are meant for a launcher; each uses those that concern it."""

    jobs: int = 1
    profile: str | None = None
    live_code: bool = False
    canary: bool = True
    tracking: bool = True
    replace: bool = False


@dataclass(frozen=True)
class CostSetting:
    """How the cost of a sweep is estimated: `plan` with the resources that its runs will get, the
    `place` that measures their speed, and the number of jobs that run `at_once`."""

    plan: Plan
    place: Place
    at_once: int


@dataclass(frozen=True)
class JobQueue:
    """The jobs of a launcher, which outlive the command that submitted them.

    submitting: a context in which no other command submits. On entry it takes over jobs that a
        command left behind when it died.
    observe: return the state of the runs that have a job and lack results, given what each run
        has recorded; `silent` if the queue does not answer.
    find: return the job of each run of the sweep that has one in the queue, by run id.
    cancel: cancel jobs.
    attend: called between two looks of `--watch`.
    """

    submitting: Callable[[Plan, LaunchOptions], AbstractContextManager[None]]
    observe: Callable[[Plan, Mapping[str, Recorded]], Observed]
    find: Callable[[Plan], dict[str, str]]
    cancel: Callable[[Sequence[str]], None]
    attend: Callable[[Plan, Observed], None]


def _accept(plan: Plan, runs: Sequence[Run], options: LaunchOptions) -> list[str]:
    return []


def _measure_here(plan: Plan, options: LaunchOptions) -> CostSetting:
    return CostSetting(plan, this_machine(options.jobs), options.jobs)


@dataclass(frozen=True)
class Launcher:
    """A way to execute the runs of a sweep.

    launch: execute or submit runs, whose directories exist. Return the ids of those that have to
        wait until it can take more. Errors: `Interrupted` if the user stopped it.
    foreground: whether `launch` returns when the runs have ended. Such a launcher also takes runs
        that another process works on, and waits for them.
    check: check, before anything is created, that the runs can have their resources; return a line
        for each kind of job. Errors: `UserError`.
    connected: return a context in which `launch` can execute the runs.
    here: return whether the runs execute on this machine.
    cost_setting: return how the cost of the sweep is estimated.
    ends_early: whether it applies a sweep's early-stopping rule.
    profiles: whether it reads a cluster profile (`profile:`, `--profile`).
    jobs: for a launcher whose runs are jobs.
    """

    name: str
    launch: Callable[[Plan, tuple[Run, ...], LaunchOptions, Watch], Sequence[str]]
    foreground: bool
    check: Callable[[Plan, Sequence[Run], LaunchOptions], list[str]] = _accept
    connected: Callable[[Plan, Sequence[Run]], AbstractContextManager[None]] = lambda plan, runs: (
        nullcontext()
    )
    here: Callable[[Plan], bool] = lambda plan: True
    cost_setting: Callable[[Plan, LaunchOptions], CostSetting] = _measure_here
    ends_early: bool = False
    profiles: bool = False
    jobs: JobQueue | None = None
