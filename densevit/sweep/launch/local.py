"""The local launcher: some runs at once, each a process of its own, on this machine."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from pathlib import Path

from densevit.errors import EXIT_CARRY_ON
from densevit.lifecycle import JOB, LAUNCHER
from densevit.sweep.grid import Run
from densevit.sweep.launch.staying import Interrupted, Progress, Watch, interruptible
from densevit.sweep.launch.training import settle, start_training
from densevit.sweep.plan import Plan

POLL_SECONDS = 0.3
GRACE_SECONDS = 60.0  # a run that is asked to stop ends at its next step


def launch(plan: Plan, runs: tuple[Run, ...], jobs: int, watch: Watch) -> None:
    """Execute runs, `jobs` at a time; returns when all have ended, well or not.

    `watch` is called several times a second with what is going on.
    Errors: `Interrupted` after Ctrl-C, SIGTERM or SIGHUP, with every run stopped.
    """
    progress = Progress(deque(runs))
    slots = deque(range(jobs))
    held: dict[Run, int] = {}
    with interruptible(_interrupt):
        try:
            while progress.waiting or progress.active or progress.elsewhere:
                while progress.waiting and slots:
                    run = progress.waiting.popleft()
                    if plan.run_folder(run).stop_file.exists():
                        progress.ended.append(run)
                        continue
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
            if plan.run_folder(run).stop_file.exists():
                process.terminate()  # which it may be told more than once
            continue
        del progress.active[run]
        freed.append(run)
        if code == EXIT_CARRY_ON and plan.run_folder(run).locked():
            progress.elsewhere.append(run)  # another launcher was first; it is watched
        else:
            settle(plan.run_folder(run), code)
            progress.ended.append(run)
    for run in list(progress.elsewhere):
        if not plan.run_folder(run).locked():
            progress.elsewhere.remove(run)
            progress.ended.append(run)
    return freed


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """This process's environment with the run's share of the processors and GPUs.

    A number of threads that the user has set is kept.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, LAUNCHER: "local", JOB: ""}
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


def _interrupt() -> None:
    raise Interrupted
