"""The local launcher: several runs at a time on this machine, each in its own process."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from densevit.launch.foreground import Interrupted, Progress, Watch, interruptible
from densevit.launch.launcher import Launcher, LaunchOptions
from densevit.launch.process import settle, start_training
from densevit.runs.provenance import JOB, LAUNCHER
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.distributed import without_rendezvous
from densevit.utils.errors import EXIT_CARRY_ON
from densevit.utils.threads import limit_processors, processors

POLL_SECONDS = 0.3
GRACE_SECONDS = 60.0  # a run ends at the next step after a stop request


def launch(
    plan: Plan, runs: tuple[Run, ...], options: LaunchOptions, watch: Watch
) -> Sequence[str]:
    """Execute runs, `options.jobs` at a time; return when all have ended, successfully or not.

    `watch` is called with the progress several times a second.
    Errors: `Interrupted` after Ctrl-C, SIGTERM or SIGHUP, with every run stopped.
    """
    progress = Progress(deque(runs))
    slots = deque(range(options.jobs))
    slot_of: dict[Run, int] = {}
    with interruptible(_interrupt):
        try:
            while progress.waiting or progress.active or progress.elsewhere:
                while progress.waiting and slots:
                    run = progress.waiting.popleft()
                    if plan.run_folder(run).stop_file.exists():
                        progress.ended.append(run)
                        continue
                    slot_of[run] = slots.popleft()
                    # Ctrl-C reaches the launcher alone, which then stops its runs.
                    progress.active[run] = start_training(
                        plan.run_folder(run), _environment(slot_of[run], options.jobs),
                        own_session=True,
                    )  # fmt: skip
                watch(progress)
                time.sleep(POLL_SECONDS)
                for run in _collect(plan, progress):
                    slots.append(slot_of.pop(run))
        except (KeyboardInterrupt, Interrupted):
            _stop(list(progress.active.values()))
            raise Interrupted from None
        except BaseException:
            _stop(list(progress.active.values()))
            raise
    watch(progress)
    return ()


def _collect(plan: Plan, progress: Progress) -> list[Run]:
    """Move runs that have ended; return those whose slot is free again."""
    freed = []
    for run, process in list(progress.active.items()):
        code = process.poll()
        if code is None:
            if plan.run_folder(run).stop_file.exists():
                process.terminate()  # repeated signals do no harm
            continue
        del progress.active[run]
        freed.append(run)
        if code == EXIT_CARRY_ON and plan.run_folder(run).locked():
            progress.elsewhere.append(run)  # another launcher was first; wait for it
        else:
            settle(plan.run_folder(run), code)
            progress.ended.append(run)
    for run in list(progress.elsewhere):
        if not plan.run_folder(run).locked():
            progress.elsewhere.remove(run)
            progress.ended.append(run)
    return freed


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """Return this process's environment with the run's share of the CPUs and GPUs."""
    environment = {**without_rendezvous(os.environ), LAUNCHER: "local", JOB: ""}
    limit_processors(environment, processors() // jobs)
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
    """Ask runs to stop at their next step, wait, and kill those that do not."""
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


LOCAL = Launcher("local", launch, foreground=True)
