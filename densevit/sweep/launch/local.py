"""The local launcher: some runs at once, each a process of its own, on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from densevit.errors import EXIT_CARRY_ON
from densevit.rundir import read_json
from densevit.sweep.grid import Run
from densevit.sweep.launch.training import start_training
from densevit.sweep.plan import Plan

POLL_SECONDS = 0.3
GRACE_SECONDS = 60.0  # a run that is asked to stop ends at its next step


@dataclass
class Progress:
    """What is going on: runs that wait, run (here or under another launcher) and have ended."""

    waiting: deque[Run]
    active: dict[Run, subprocess.Popen[bytes]] = field(default_factory=dict)
    elsewhere: list[Run] = field(default_factory=list)
    ended: list[Run] = field(default_factory=list)


Watch = Callable[[Progress], None]


class Interrupted(Exception):
    """The launcher was asked to stop; its runs have been stopped and can be carried on."""


def launch(plan: Plan, runs: tuple[Run, ...], jobs: int, watch: Watch) -> None:
    """Execute runs, `jobs` at a time; returns when all have ended, well or not.

    `watch` is called several times a second with what is going on.
    Errors: `Interrupted` after Ctrl-C, SIGTERM or SIGHUP, with every run stopped.
    """
    progress = Progress(deque(runs))
    slots = deque(range(jobs))
    held: dict[Run, int] = {}
    with _interruptible():
        try:
            while progress.waiting or progress.active or progress.elsewhere:
                while progress.waiting and slots:
                    run = progress.waiting.popleft()
                    held[run] = slots.popleft()
                    # Ctrl-C reaches the launcher alone, which then stops its runs.
                    progress.active[run] = start_training(
                        plan.run_folder(run), _environment(held[run], jobs), own_session=True
                    )
                watch(progress)
                time.sleep(POLL_SECONDS)
                for run in _collect(plan, progress):
                    slots.append(held.pop(run))
        except (KeyboardInterrupt, Interrupted):
            _stop(list(progress.active.values()))
            raise Interrupted from None
        except BaseException:
            _stop(list(progress.active.values()))
            raise
    watch(progress)


def _collect(plan: Plan, progress: Progress) -> list[Run]:
    """Move what has ended; returns the runs whose slot is free again."""
    freed = []
    for run, process in list(progress.active.items()):
        code = process.poll()
        if code is None:
            continue
        del progress.active[run]
        freed.append(run)
        if code == EXIT_CARRY_ON and plan.run_folder(run).locked():
            progress.elsewhere.append(run)  # another launcher was first; it is watched
        else:
            _settle(plan, run, code)
            progress.ended.append(run)
    for run in list(progress.elsewhere):
        if not plan.run_folder(run).locked():
            progress.elsewhere.remove(run)
            progress.ended.append(run)
    return freed


def _settle(plan: Plan, run: Run, code: int) -> None:
    """Say of a run that died before it could say anything itself that it failed, and of what."""
    folder = plan.run_folder(run)
    last_word = (read_json(folder.status_file) or {}).get("state", "pending")
    if code != 0 and last_word in ("pending", "running"):
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        message = f"the process ended with {ended}; start it again to carry on"
        cause = "killed" if code < 0 else "code"
        folder.write_status("failed", **folder.progress(), message=message, cause=cause)


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """This process's environment with the run's share of the processors and GPUs.

    A number of threads that the user has set is kept.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    gpus = _gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def _gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask runs to stop at their next step, wait, and kill what does not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal stop the launcher as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        # Once only: a second signal must not cut short the stopping of the runs.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What the caller ignores stays ignored: a sweep under nohup outlives its terminal.
    numbers = [number for number in wanted if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
