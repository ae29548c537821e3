"""A Slurm job on a node: start its runs, watch them, and requeue the job.

submitit calls a `Task` in each process of a job. It runs `densevit train --run-dir DIR` for each
of its runs and forwards Slurm's signals. The process with rank 0 records for all how the attempt
ended, and requeues the job if a run has to resume.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densevit.launch.process import start_training
from densevit.launch.slurm import attempts, canary, commands, oom
from densevit.launch.slurm.attempts import End
from densevit.launch.slurm.job_environment import Place, current_place, run_environment
from densevit.launch.slurm.submissions import DEFAULT_HOURS
from densevit.runs.directory import RunFolder
from densevit.utils.console import say
from densevit.utils.errors import EXIT_CARRY_ON, EXIT_FAILED, UserError

POLL_SECONDS = 0.2
LOCK_PATIENCE = 60.0  # seconds, for a process left over from an earlier attempt
FOLLOWER_SECONDS = 10.0
MIRROR_SECONDS = 20.0  # between two updates: many jobs may share one server
MIRROR_END = 15.0  # seconds for the last update
MIRROR_END_MODEL = 300.0  # the same, if networks are exported and sent
TICK_SECONDS = 60.0  # Slurm may signal so much earlier than requested


@dataclass(frozen=True)
class Task:
    """The task of a job: the directories of its runs, and nothing else."""

    folders: tuple[str, ...]

    def __call__(self) -> None:
        """Work on the runs; exit with 0, 1 (one failed) or 75 (to be resumed)."""
        sys.exit(work([RunFolder(Path(folder)) for folder in self.folders]))

    def checkpoint(self) -> Any:
        """Return the task that submitit requeues if it is signaled before the runs have started."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def work(folders: Sequence[RunFolder]) -> int:
    """Execute runs to their end or to the next interruption; return the exit code."""
    place = current_place()
    with _mirror(folders, place):  # ends last: it must not delay the requeue
        return _work(folders, place)


def _work(folders: Sequence[RunFolder], place: Place) -> int:
    with _receiving_signals() as received:
        received.oom_kills = oom.oom_kills()
        children = _start(folders, place)
        try:
            _watch(children, place, received)
        finally:
            for child in children:
                child.process.kill()  # no process of ours outlives the job
    ends = {child.end for child in children}
    if not place.leads:
        # A rank that stops leaves the report to rank 0. One that fails ends the job by its exit
        # code, after rank 0 has had time to notice and to record it.
        time.sleep(FOLLOWER_SECONDS if ends & {"failed", "killed"} else 0)
        return EXIT_FAILED if ends & {"failed", "killed"} else 0
    if any(child.needs_requeue for child in children):
        _requeue(place)
        return EXIT_CARRY_ON
    if any(folder.status().state == "failed" for folder in folders):
        return EXIT_FAILED
    return 0 if ends <= {"finished"} else EXIT_CARRY_ON


def _mirror(folders: Sequence[RunFolder], place: Place) -> Any:
    """Return a context in which the runs are mirrored to MLflow, if the sweep is tracked."""
    if not (place.leads and place.submission.tracking):
        return nullcontext()
    from densevit.tracking.mirror_process import mirroring

    outputs, ids = folders[0].path.parents[1], [folder.path.name for folder in folders]
    grace = MIRROR_END
    with suppress(UserError):  # the run itself reports what is wrong with its configuration
        if any(folder.config().log_model for folder in folders):
            grace = MIRROR_END_MODEL
    sweep = place.submission.sweep
    return mirroring(outputs, ids, sweep, starting=True, every=MIRROR_SECONDS, grace=grace)


@dataclass
class Child:
    """A run, its process, and its step before this attempt."""

    folder: RunFolder
    process: subprocess.Popen[bytes]
    first_step: int
    end: End = ""
    needs_requeue: bool = False  # under this job


@dataclass
class ReceivedSignal:
    """The signal with which Slurm asked the job to stop (0 if none), and its time."""

    started: float = field(default_factory=time.time)
    number: int = 0
    at: float = 0.0
    means: End = ""
    oom_kills: int = 0  # by the kernel, before any run started

    def note(self, number: int, _frame: object) -> None:
        if not self.number:
            self.number, self.at = number, time.time()


@contextmanager
def _receiving_signals() -> Iterator[ReceivedSignal]:
    received = ReceivedSignal()
    before = {number: signal.signal(number, received.note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


def _start(folders: Sequence[RunFolder], place: Place) -> list[Child]:
    """Start a process for each run that may still go on."""
    before = _how_it_ended(place) if place.leads and place.restart else "lost"
    children = []
    for number, folder in enumerate(folders):
        first_step = 0
        if place.leads:
            recorded = attempts.read(folder)
            over = ("finished", "failed", "killed") if len(folders) > 1 else ("finished",)
            if recorded and recorded[-1].job == place.job and recorded[-1].end in over:
                continue  # ended, while other runs of the job resume
            new = attempts.begin(folder, place.job, place.restart, place.node, before)
            cause, message = attempts.verdict(
                attempts.read(folder)[:-1], place.job, place.submission.limits
            )
            if cause:
                folder.write_status("failed", **folder.progress(), message=message, cause=cause)
                attempts.end(folder, "failed")
                continue
            _wait_for_lock(folder)
            first_step = new.first_step
        process = start_training(folder, run_environment(place, number, len(folders)))
        children.append(Child(folder, process, first_step))
    return children


def _how_it_ended(place: Place) -> End:
    """Return how the previous attempt ended, for one that could not record it itself."""
    ends: dict[str, End] = {"NODE_FAIL": "node", "PREEMPTED": "preempted", "TIMEOUT": "timeout"}
    return ends.get(commands.last_end(place.slurm_id), "requeued")


def _wait_for_lock(folder: RunFolder) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while folder.locked() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _watch(children: Sequence[Child], place: Place, received: ReceivedSignal) -> None:
    """Wait for all runs, record their ends, forward a signal, release the canary's followers."""
    passed_on = False
    unsure = place.leads and place.is_canary and place.submission.canary_result() is None
    running = list(children)
    while running:
        time.sleep(POLL_SECONDS)
        if received.number and not passed_on:
            passed_on = True
            for child in running:
                child.process.send_signal(received.number)
        for child in [c for c in running if c.process.poll() is not None]:
            running.remove(child)
            _note_end(child, place, received)
        if unsure and any(map(_trains, children)):
            unsure = False
            _report_canary(place, passed=True)
    if unsure and not received.number:
        first = children[0].folder if children else None
        message = first.status().message if first else "no run of the job may start again"
        _report_canary(place, passed=False, run=first.path.name if first else "", message=message)


def _trains(child: Child) -> bool:
    """Return whether a run has trained its first steps in this attempt, or is finished."""
    status = child.folder.status()
    steps = min(canary.STEPS, status.steps - child.first_step)
    return status.state == "finished" or (
        status.state == "running" and 0 < steps <= status.step - child.first_step
    )


def _report_canary(place: Place, *, passed: bool, run: str = "", message: str = "") -> None:
    place.submission.write_canary_result(passed, run, message)
    silent = _patiently(lambda: canary.advance(place.submission))
    if silent:
        say(
            f"the other jobs stay on hold: {silent}; the next densevit-sweep command releases or "
            f"withdraws them"
        )


def _note_end(child: Child, place: Place, received: ReceivedSignal) -> None:
    """Record how a run's process ended, and whether the run resumes under this job."""
    code, folder = child.process.returncode, child.folder
    # A signal may arrive before the run can handle it.
    if received.number and (code == EXIT_CARRY_ON or -code in _SIGNALS):
        if not received.means:
            received.means = _reason_of_signal(place, received) if place.leads else "cancelled"
        child.end = received.means
    elif code == EXIT_CARRY_ON:
        child.end = "elsewhere"
    else:
        child.end = "finished" if code == 0 else "failed" if code > 0 else "killed"
    if not place.leads:
        return
    say(f"{folder.path.name}: {child.end}")
    attempts.end(folder, child.end)
    if child.end == "killed":
        _record_killed(child, out_of_memory=oom.oom_kills() > received.oom_kills)
    if child.end in ("timeout", "preempted"):
        cause, message = attempts.verdict(attempts.read(folder), place.job, place.submission.limits)
        child.needs_requeue = not cause
        if cause:
            folder.write_status("failed", **folder.progress(), message=message, cause=cause)


def _reason_of_signal(place: Place, received: ReceivedSignal) -> End:
    """Return the reason for a signal: timeout, preemption or cancellation."""
    if received.number == signal.SIGUSR2:
        limit = 3600 * place.submission.resources.get("hours", DEFAULT_HOURS)
        early = place.submission.signal_seconds + TICK_SECONDS
        return "timeout" if received.at - received.started >= limit - early else "preempted"
    with suppress(commands.NoAnswer):
        facts = commands.described(place.slurm_id)
        # In the grace time before its preemption a job still counts as running.
        if facts.get("JobState") == "RUNNING" and facts.get("PreemptTime", "None") != "None":
            return "preempted"
    return "cancelled"


def _record_killed(child: Child, *, out_of_memory: bool) -> None:
    name = signal.Signals(-child.process.returncode).name
    message, cause = f"the process was ended by {name}", "code"
    if out_of_memory:
        message, cause = "the kernel killed it: its job was out of memory", "oom"
    elif name in ("SIGKILL", "SIGTERM"):
        message, cause = f"{message}: out of memory, or killed by a user", "killed"
    child.folder.write_status("failed", **child.folder.progress(), message=message, cause=cause)


def _requeue(place: Place) -> None:
    silent = _patiently(lambda: commands.requeue(place.slurm_id))
    if silent:
        say(f"not requeued: {silent}; run densevit-sweep again to resume")


def _patiently(ask: Callable[[], object]) -> str:
    """Call Slurm, and retry while it does not answer; return the last error, empty if none."""
    for wait in (2.0, 5.0, 10.0, 0.0):
        try:
            ask()
            return ""
        except commands.Refused as refused:
            return str(refused)
        except commands.NoAnswer as silent:
            message = str(silent)
            time.sleep(wait)
    return message
