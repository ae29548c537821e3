"""What happens on a node: the runs of a job are started, watched, and sent back into the queue.

submitit calls a `Task` in each process of a job. It runs `densevit train --run-dir DIR` for each
of its runs, passes on what Slurm says by signals, notes how the start ended, and asks Slurm for
another one when the run has to carry on. The process with rank 0 does that for all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densevit.errors import EXIT_CARRY_ON, EXIT_FAILED, UserError
from densevit.lifecycle import JOB, LAUNCHER
from densevit.rundir import RunFolder
from densevit.sweep.launch.slurm import attempts, canary, cluster, memory, records
from densevit.sweep.launch.slurm.attempts import End
from densevit.sweep.launch.training import start_training

POLL_SECONDS = 0.2
LOCK_PATIENCE = 60.0  # seconds, for what an earlier start has left running
FOLLOWER_SECONDS = 10.0
MIRROR_SECONDS = 20.0  # between two looks: many jobs may ask one server
MIRROR_END = 15.0  # seconds for the last one
MIRROR_END_MODEL = 300.0  # the same, when networks are exported and sent
TICK_SECONDS = 60.0  # Slurm signals up to so much earlier than it was asked to


@dataclass(frozen=True)
class Task:
    """What a job is told: the directories of its runs, and nothing else."""

    folders: tuple[str, ...]

    def __call__(self) -> None:
        """Work on the runs; ends the process with 0, 1 (one failed) or 75 (to be carried on)."""
        sys.exit(work([RunFolder(Path(folder)) for folder in self.folders]))

    def checkpoint(self) -> Any:
        """What submitit starts again when it is signalled before the runs are there."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Place:
    """This process within its job."""

    job: str  # as the records name it: ARRAY_INDEX, or a number
    slurm_id: str
    restart: int
    node: str
    rank: int
    ranks: int
    submission: records.Submission

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def is_canary(self) -> bool:
        return self.submission.canary and self.job == next(iter(self.submission.elements()))


def work(folders: Sequence[RunFolder]) -> int:
    """Carry runs to their end or to the next interruption; returns the exit code."""
    place = _place()
    with _mirror(folders, place):  # which ends last: it must not keep the job from the queue
        return _work(folders, place)


def _work(folders: Sequence[RunFolder], place: Place) -> int:
    with _hearing() as heard:
        heard.oom_kills = memory.oom_kills()
        team = _start(folders, place)
        try:
            _watch(team, place, heard)
        finally:
            for child in team:
                child.process.kill()  # nothing of ours outlives the job
    ends = {child.end for child in team}
    if not place.leads:
        # A rank that stops leaves the word to rank 0; one that fails ends the job by its code,
        # when rank 0 has had the time to notice and to say so.
        time.sleep(FOLLOWER_SECONDS if ends & {"failed", "killed"} else 0)
        return EXIT_FAILED if ends & {"failed", "killed"} else 0
    if any(child.carries_on for child in team):
        _requeue(place)
        return EXIT_CARRY_ON
    if any(folder.status().state == "failed" for folder in folders):
        return EXIT_FAILED
    return 0 if ends <= {"finished"} else EXIT_CARRY_ON


def _mirror(folders: Sequence[RunFolder], place: Place) -> Any:
    """A context in which the runs are mirrored to MLflow, if the sweep is tracked."""
    if not (place.leads and place.submission.tracking):
        return nullcontext()
    from densevit.tracking.beside import mirroring

    outputs, ids = folders[0].path.parents[1], [folder.path.name for folder in folders]
    grace = MIRROR_END
    with suppress(UserError):  # the run itself says what is wrong with its configuration
        if any(folder.config().log_model for folder in folders):
            grace = MIRROR_END_MODEL
    sweep = place.submission.sweep
    return mirroring(outputs, ids, sweep, starting=True, every=MIRROR_SECONDS, grace=grace)


@dataclass
class Child:
    """A run, the process that works on it, and where it stood before."""

    folder: RunFolder
    process: subprocess.Popen[bytes]
    first_step: int
    end: End = ""
    carries_on: bool = False  # under this job


@dataclass
class Heard:
    """The signal by which Slurm asked the job to stop, 0 while it did not, and when."""

    started: float = field(default_factory=time.time)
    number: int = 0
    at: float = 0.0
    means: End = ""
    oom_kills: int = 0  # by the kernel, before any run was started

    def note(self, number: int, _frame: object) -> None:
        if not self.number:
            self.number, self.at = number, time.time()


@contextmanager
def _hearing() -> Iterator[Heard]:
    heard = Heard()
    held = {number: signal.signal(number, heard.note) for number in _SIGNALS}
    try:
        yield heard
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


def _place() -> Place:
    from submitit import JobEnvironment

    here = JobEnvironment()
    return Place(
        job=here.job_id,
        slurm_id=here.raw_job_id,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        node=os.environ.get("SLURMD_NODENAME", here.hostname),
        rank=here.global_rank,
        ranks=here.num_tasks,
        submission=records.read(Path(os.environ["SUBMITIT_FOLDER"]).parent),
    )


def _start(folders: Sequence[RunFolder], place: Place) -> list[Child]:
    """A process for each run that may still go on."""
    before = _how_it_ended(place) if place.leads and place.restart else "lost"
    team = []
    for number, folder in enumerate(folders):
        first_step = 0
        if place.leads:
            held = attempts.read(folder)
            over = ("finished", "failed", "killed") if len(folders) > 1 else ("finished",)
            if held and held[-1].job == place.job and held[-1].end in over:
                continue  # beside others that carry on
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
        process = start_training(folder, _environment(place, number, len(folders)))
        team.append(Child(folder, process, first_step))
    return team


def _how_it_ended(place: Place) -> End:
    """How the start before this one ended, if it could not say so itself."""
    words: dict[str, End] = {"NODE_FAIL": "node", "PREEMPTED": "preempted", "TIMEOUT": "timeout"}
    return words.get(cluster.last_end(place.slurm_id), "requeued")


def _wait_for_lock(folder: RunFolder) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while folder.locked() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _environment(place: Place, number: int, runs: int) -> dict[str, str]:
    """This process's environment with a run's share of the processors and GPUs of its job."""
    cpus = len(os.sched_getaffinity(0))
    with suppress(ValueError):
        cpus = min(cpus, int(os.environ.get("SLURM_CPUS_PER_TASK", cpus)))
    environment = {
        "OMP_NUM_THREADS": str(max(1, cpus // runs)),
        **os.environ,
        LAUNCHER: "slurm",
        JOB: place.job,
    }
    if place.ranks > 1:
        from submitit.helpers import TorchDistributedEnvironment

        # A mask of GPUs that Slurm has set stays: it may differ from task to task.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        environment |= {k: os.environ[k] for k in _RENDEZVOUS}
        environment["MASTER_ADDR"] = cluster.address(environment["MASTER_ADDR"])
    else:
        for name in ("SUBMITIT_EXECUTOR", *_RENDEZVOUS):  # as a shell within another job has them
            environment.pop(name, None)
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if runs > 1 and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return environment


_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def _watch(team: Sequence[Child], place: Place, heard: Heard) -> None:
    """Wait for all runs and note how each ends; pass on a signal; let the canary's followers go."""
    passed_on = False
    unsure = place.leads and place.is_canary and place.submission.canary_word() is None
    going = list(team)
    while going:
        time.sleep(POLL_SECONDS)
        if heard.number and not passed_on:
            passed_on = True
            for child in going:
                child.process.send_signal(heard.number)
        for child in [c for c in going if c.process.poll() is not None]:
            going.remove(child)
            _note_end(child, place, heard)
        if unsure and any(map(_works, team)):
            unsure = False
            _tell_canary(place, passed=True)
    if unsure and not heard.number:
        first = team[0].folder if team else None
        message = first.status().message if first else "it had no starts left"
        _tell_canary(place, passed=False, run=first.path.name if first else "", message=message)


def _works(child: Child) -> bool:
    """Whether a run has trained its first steps in this start, or is finished."""
    status = child.folder.status()
    steps = min(canary.STEPS, status.steps - child.first_step)
    return status.state == "finished" or (
        status.state == "running" and 0 < steps <= status.step - child.first_step
    )


def _tell_canary(place: Place, *, passed: bool, run: str = "", message: str = "") -> None:
    place.submission.write_canary_word(passed, run, message)
    silent = _patiently(lambda: canary.advance(place.submission))
    if silent:
        print(f"the others still wait: {silent}; densevit-sweep decides", flush=True)


def _note_end(child: Child, place: Place, heard: Heard) -> None:
    """How a run's process ended, and whether the run carries on under this job."""
    code, folder = child.process.returncode, child.folder
    # A signal may arrive before the run can note it.
    if heard.number and (code == EXIT_CARRY_ON or -code in _SIGNALS):
        heard.means = heard.means or (_why_stopped(place, heard) if place.leads else "cancelled")
        child.end = heard.means
    elif code == EXIT_CARRY_ON:
        child.end = "elsewhere"
    else:
        child.end = "finished" if code == 0 else "failed" if code > 0 else "killed"
    if not place.leads:
        return
    print(f"{folder.path.name}: {child.end}", flush=True)
    attempts.end(folder, child.end)
    if child.end == "killed":
        _tell_killed(child, out_of_memory=memory.oom_kills() > heard.oom_kills)
    if child.end in ("timeout", "preempted"):
        cause, message = attempts.verdict(attempts.read(folder), place.job, place.submission.limits)
        child.carries_on = not cause
        if cause:
            folder.write_status("failed", **folder.progress(), message=message, cause=cause)


def _why_stopped(place: Place, heard: Heard) -> End:
    """What a signal means: time is up, the machine is wanted, or somebody has said so."""
    if heard.number == signal.SIGUSR2:
        limit = 3600 * place.submission.resources.get("hours", 24)
        early = place.submission.signal_seconds + TICK_SECONDS
        return "timeout" if heard.at - heard.started >= limit - early else "preempted"
    with suppress(cluster.NoAnswer):
        facts = cluster.described(place.slurm_id)
        # In the time of grace before it is preempted a job still counts as running.
        if facts.get("JobState") == "RUNNING" and facts.get("PreemptTime", "None") != "None":
            return "preempted"
    return "cancelled"


def _tell_killed(child: Child, *, out_of_memory: bool) -> None:
    name = signal.Signals(-child.process.returncode).name
    message, cause = f"the process was ended by {name}", "code"
    if out_of_memory:
        message, cause = "the kernel killed it: its job was out of memory", "oom"
    elif name in ("SIGKILL", "SIGTERM"):
        message, cause = f"{message}: out of memory, or by hand", "killed"
    child.folder.write_status("failed", **child.folder.progress(), message=message, cause=cause)


def _requeue(place: Place) -> None:
    silent = _patiently(lambda: cluster.requeue(place.slurm_id))
    if silent:
        print(f"not requeued: {silent}; densevit-sweep carries on", flush=True)


def _patiently(ask: Callable[[], object]) -> str:
    """Ask Slurm for something, and again while it does not answer; why it did not in the end."""
    for wait in (2.0, 5.0, 10.0, 0.0):
        try:
            ask()
            return ""
        except cluster.Refused as refused:
            return str(refused)
        except cluster.NoAnswer as silent:
            told = str(silent)
            time.sleep(wait)
    return told
