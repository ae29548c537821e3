"""What surrounds a run: its folder, lock, log, provenance and status, and how it is stopped.

Nothing heavy is imported until the run really has something to do.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from densevit.config import RunConfig
from densevit.data.names import benchmark_names
from densevit.distributed import world
from densevit.errors import (
    EXIT_CARRY_ON,
    EXIT_FAILED,
    EXIT_MISTAKE,
    Diverged,
    RunError,
    Stopped,
    StoppedNow,
    UserError,
)
from densevit.passwords import without_password
from densevit.rundir import Cause, RunFolder, State, read_json, write_json

if TYPE_CHECKING:
    from densevit.trainer import Asked

log = logging.getLogger("densevit")


def execute(folder: RunFolder, config: RunConfig | None = None, asked: Asked | None = None) -> int:
    """Carry the run of a folder to its end and return the exit code.

    `config` is the run's, for a process beside the one that has written it to the folder. `asked`
    tells what asks the run to stop, where that is no signal to this process.

    0: finished, or was so already. 1: failed. 2: a mistake in the configuration or the data.
    75: asked to stop, or another process holds the run; the same command carries on.
    """
    if not world().writes:
        return _follow(folder, config or folder.config(), asked)
    with folder.lock() as mine:
        if not mine:
            log.warning("%s: another process is working on this run", folder.path)
            return EXIT_CARRY_ON
        if has_results(folder, folder.config()):
            log.info("%s: is finished already", folder.path)
            if (read_json(folder.status_file) or {}).get("state") != "finished":
                # It was killed before it could say so.
                folder.write_status("finished", **folder.progress())
            return 0
        return _execute_locked(folder, asked)


def has_results(folder: RunFolder, config: RunConfig) -> bool:
    """Whether the run has been trained and has numbers for everything that `config` evaluates."""
    results = read_json(folder.results_file)
    return results is not None and set(benchmark_names(config)) <= results["benchmarks"].keys()


def _execute_locked(folder: RunFolder, told: Asked | None) -> int:
    with _logging_to(folder.log_file), _noting_signals(told) as asked:
        code, state, message, cause = 0, "finished", "", ""
        folder.write_status("running", **{**folder.progress(), "started": time.time()})
        try:
            _record_start(folder)
            if asked():
                raise Stopped(signal.Signals(asked()).name)
            from densevit.train import train  # imports torch: seconds

            train(folder, asked, folder.config())
        except Stopped as stop:
            code, state, message = EXIT_CARRY_ON, "cancelled", str(stop)
        except (UserError, RunError) as error:
            code = EXIT_MISTAKE if isinstance(error, UserError) else EXIT_FAILED
            # From a loading process the message arrives behind that process's traceback.
            state, message = "failed", _last_line(error)
            message = message.removeprefix("densevit.errors.UserError: ")
            cause = "nan" if isinstance(error, Diverged) else "code"
            log.error("%s", message)
        except OSError as error:  # a full disk, a folder that cannot be written
            code, state = EXIT_FAILED, "failed"
            where = f"{error.filename}: " if error.filename else ""
            message, cause = f"{where}{error.strerror or _last_line(error)}", "code"
            log.error("%s", message)
        except Exception as error:
            code, state = EXIT_FAILED, "failed"
            message = f"{type(error).__name__}: {_last_line(error)}"
            cause = "oom" if _out_of_memory(error) else "code"
            log.error("%s", traceback.format_exc())
        _end(folder, state, message, cause)
        return code


def _follow(folder: RunFolder, config: RunConfig, told: Asked | None) -> int:
    """Train beside the process that writes: the same code, and no word to any file."""
    if has_results(folder, config):
        return 0
    log.setLevel(logging.WARNING)
    with _noting_signals(told) as asked:
        from densevit.train import train

        try:
            train(folder, asked, config)
        except Stopped:
            return EXIT_CARRY_ON
        except (UserError, RunError) as error:
            log.error("%s", _last_line(error))
            return EXIT_MISTAKE if isinstance(error, UserError) else EXIT_FAILED
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Whether it is Python's, CUDA's or the CPU allocator's word for it, or a loading process was
    killed, which is what the kernel does to the largest."""
    words = ("out of memory", "not enough memory", "cannot allocate memory")
    words += ("is killed by signal: killed",)
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def _end(folder: RunFolder, state: State, message: str, cause: Cause) -> None:
    try:
        facts = folder.progress()
        facts["spent"] = facts.get("spent", 0.0) + time.time() - folder.status().updated
        folder.write_status(state, **facts, message=message, cause=cause)
    except OSError as error:
        log.error("%s: %s", folder.status_file, error.strerror or error)
    words = {"cancelled": "stopped; the same command carries on"}
    log.info("%s%s", words.get(state, state), f": {message}" if message else "")


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else ""


TWICE_SECONDS = 0.5
# Slurm and submitit send SIGUSR2 before they take a machine away, most others SIGTERM.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


@contextmanager
def _noting_signals(told: Asked | None) -> Iterator[Asked]:
    """A function that tells the signal that asked the run to stop, 0 while none did."""
    if told is not None:
        yield told
        return
    received: list[int] = []
    moments: list[float] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        moments.append(time.monotonic())
        # Asked twice at the keyboard: stop here and now. Other signals come more than once by
        # themselves, from a launcher and from what it has started.
        if number == signal.SIGINT and moments[-1] - moments[0] > TWICE_SECONDS:
            raise StoppedNow(signal.Signals(number).name)

    def asked() -> int:
        return received[0] if received else 0

    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may set handlers
        return
    held = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.handleError = lambda record: None  # a full disk must not fill the terminal as well
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


# Set by what starts a run: the sweep's launcher, and the job that the run is in.
LAUNCHER, JOB = "DENSEVIT_LAUNCHER", "DENSEVIT_JOB"
_PACKAGES = ("densevit", "torch", "torchvision", "timm", "numpy", "pillow")


def _record_start(folder: RunFolder) -> None:
    """Add this start to provenance.json: code, versions, machine and command."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    start = {
        "time": time.time(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "command": without_password(shlex.join(sys.argv)),
        "launcher": os.environ.get(LAUNCHER, ""),
        "job": os.environ.get(JOB, ""),
        "versions": versions,
        **git_state(),
    }
    record = read_json(folder.provenance_file) or {"starts": []}
    write_json(folder.provenance_file, {"starts": [*record["starts"], start]})


def git_state() -> dict[str, str | None]:
    """The commit and the uncommitted diff of the code that runs; None outside a checkout.

    A copy that was taken for jobs says what it was taken from, and its `code` digest.
    """
    source = Path(__file__).resolve().parent
    copied = read_json(source.parent / "snapshot.json")
    if copied is not None:
        return {"code": copied["digest"], **{k: copied[k] for k in ("git_sha", "git_diff")}}

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(source), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, timeout=30, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode(errors="replace")

    # A checkout that merely contains an installed copy says nothing about the code.
    if not git("ls-files", "--error-unmatch", __file__):
        return {"git_sha": None, "git_diff": None}
    sha = git("rev-parse", "HEAD")
    return {"git_sha": sha.strip() if sha else None, "git_diff": git("diff", "HEAD")}
