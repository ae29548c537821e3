"""A run as a process: what every launcher starts."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping

from densevit.rundir import RunFolder, read_json


def start_training(
    folder: RunFolder, environment: Mapping[str, str], *, own_session: bool = False
) -> subprocess.Popen[bytes]:
    """`densevit train --run-dir`, with all that it prints in the run's log.

    In a session of its own it is not reached by Ctrl-C, nor by what else a terminal signals.
    """
    command = [sys.executable, "-m", "densevit", "train", "--run-dir", str(folder.path)]
    with folder.log_file.open("ab") as log:
        return subprocess.Popen(  # noqa: S603  (a list, no shell)
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            start_new_session=own_session,
        )


def settle(folder: RunFolder, code: int) -> None:
    """Say of a run that died before it could say anything itself that it failed, and of what."""
    last_word = (read_json(folder.status_file) or {}).get("state", "pending")
    if code != 0 and last_word in ("pending", "running"):
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        message = f"the process ended with {ended}; start it again to carry on"
        cause = "killed" if code < 0 else "code"
        folder.write_status("failed", **folder.progress(), message=message, cause=cause)
