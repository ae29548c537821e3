"""Execution of a run: its lock, log, provenance, status, stop signals and exit code.

Heavy imports wait until the run has work to do.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from densevit.config.run_config import RunConfig
from densevit.runs.directory import RunFolder, has_results
from densevit.runs.provenance import record_start
from densevit.runs.status import Cause, State
from densevit.train.signals import note_signals
from densevit.utils.console import LogFormatter
from densevit.utils.distributed import world
from densevit.utils.errors import (
    EXIT_CARRY_ON,
    EXIT_FAILED,
    EXIT_MISTAKE,
    Diverged,
    LostFolder,
    RunError,
    Stopped,
    UserError,
    own_message,
)
from densevit.utils.files import read_json
from densevit.utils.threads import limit_processors, processors

if TYPE_CHECKING:
    from densevit.train.trainer import StopSignal

log = logging.getLogger("densevit")


def execute(
    folder: RunFolder, config: RunConfig | None = None, stop_signal: StopSignal | None = None
) -> int:
    """Run or resume the run of a folder to its end and return the exit code.

    `config` is the run's config, for processes other than the one that wrote it to the folder.
    `stop_signal` returns the stop signal if it does not reach this process as a signal.

    0: finished now or before. 1: failed. 2: an error in the configuration or the data.
    75: stopped on request, or another process holds the run; the same command resumes it.
    """
    limit_processors(os.environ, processors())  # before torch is imported
    if not world().writes:
        return _train_only(folder, config or folder.config(), stop_signal)
    with folder.lock() as mine:
        if not mine:
            log.warning("%s: another process is working on this run%s", folder.path, _tasks_hint())
            return EXIT_CARRY_ON
        if has_results(folder, folder.config()):
            log.info("%s: the run is already finished", folder.path)
            if (read_json(folder.status_file) or {}).get("state") != "finished":
                # It was killed before it could write the status.
                folder.write_status("finished", **folder.progress())
            return 0
        return _execute_locked(folder, stop_signal)


def _tasks_hint() -> str:
    """Return what to do if srun has started the same command several times; empty otherwise."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if not tasks.isdecimal() or int(tasks) < 2:
        return ""
    return (
        f"; srun has started {tasks} tasks, and each trains a run of its own: use srun -n 1; for "
        f"several processes of one run use torchrun, or resources: {{gpus: ...}} in a sweep"
    )


def _execute_locked(folder: RunFolder, given: StopSignal | None) -> int:
    state: State = "finished"
    cause: Cause = ""
    with _logging_to(folder.log_file), note_signals(given) as stop_signal:
        code, message = 0, ""
        folder.write_status("running", **{**folder.progress(), "started": time.time()})
        try:
            record_start(folder)
            if stop_signal():
                raise Stopped(signal.Signals(stop_signal()).name)
            from densevit.train.loop import train  # imports torch: seconds

            train(folder, stop_signal, folder.config())
        except Stopped as stop:
            code, state, message = EXIT_CARRY_ON, "cancelled", str(stop)
        except (UserError, RunError) as error:
            code = EXIT_MISTAKE if isinstance(error, UserError) else EXIT_FAILED
            # A message from a loading process follows that process's traceback.
            state, message = "failed", own_message(_last_line(error))
            cause = "nan" if isinstance(error, Diverged) else "code"
            log.error("%s", message)
        except OSError as error:  # a full disk or a read-only folder
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


def _train_only(folder: RunFolder, config: RunConfig, given: StopSignal | None) -> int:
    """Train in a process that writes no files; another one does."""
    if has_results(folder, config):
        return 0
    log.setLevel(logging.WARNING)
    with note_signals(given) as stop_signal:
        from densevit.train.loop import train

        try:
            train(folder, stop_signal, config)
        except Stopped:
            return EXIT_CARRY_ON
        except (UserError, RunError) as error:
            log.error("%s", _last_line(error))
            return EXIT_MISTAKE if isinstance(error, UserError) else EXIT_FAILED
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Return True if memory ran out: an allocation failed, or a loading process was killed."""
    signs = (
        "out of memory", "not enough memory", "cannot allocate memory",
        "is killed by signal: killed",
    )  # fmt: skip
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)


def _end(folder: RunFolder, state: State, message: str, cause: Cause) -> None:
    try:
        progress = folder.progress()
        progress["spent"] = progress.get("spent", 0.0) + time.time() - folder.status().updated
        folder.write_status(state, **progress, message=message, cause=cause)
    except LostFolder:
        return  # the status there is another process's
    except OSError as error:
        log.error("%s: %s", folder.status_file, error.strerror or error)
    outcome = "stopped; run the same command to resume" if state == "cancelled" else state
    log.info("%s%s", outcome, f": {message}" if message else "")


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else ""


class _LogFile(logging.FileHandler):
    """A log file whose errors are ignored: a full disk must not flood the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = _LogFile(path)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
