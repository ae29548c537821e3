"""A run as a process, as every launcher starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping

from densevit.runs.directory import RunFolder
from densevit.utils.errors import UserError


def training_command(folder: RunFolder) -> list[str]:
    """Return the command that trains, resumes or evaluates the run of a directory."""
    return [sys.executable, "-m", "densevit", "train", "--run-dir", str(folder.path)]


def start_training(
    folder: RunFolder, environment: Mapping[str, str], *, own_session: bool = False
) -> subprocess.Popen[bytes]:
    """Start `densevit train --run-dir` with its output in the run's log.

    With `own_session`, Ctrl-C and other signals of the terminal do not reach it.
    """
    with folder.log_file.open("ab") as log:
        return subprocess.Popen(  # noqa: S603  (a list, no shell)
            training_command(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**environment, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
            start_new_session=own_session,
        )


def settle(folder: RunFolder, code: int) -> None:
    """Record a run as failed, with the cause, if it died before it could record this itself."""
    if folder.locked() or not folder.path.exists():
        return  # its directory was removed meanwhile, and may be another process's
    try:
        recorded = folder.recorded_status().state
    except UserError:  # its damage shows as its state; the launcher has other runs
        return
    if code != 0 and recorded in ("pending", "running"):
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        message = f"the process ended with {ended}; start it again to resume it"
        cause = "killed" if code < 0 else "code"
        folder.write_status("failed", **folder.progress(), message=message, cause=cause)
