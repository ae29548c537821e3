"""A process that has everything imported and forks itself for each run: what small runs of a slot
need not wait for again.

    python -m densevit.sweep.launch.warm

reads a line of JSON for each run from its standard input, one at a time, and answers with its
process and then with how that ended. The fork happens before any thread or GPU is there, so that a
run finds what a new process would, and leaves nothing behind. When the other end is gone, however
it ended, so is the run soon: with a checkpoint if it can.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import densevit
from densevit.lifecycle import JOB, LAUNCHER
from densevit.rundir import RunFolder

# What a run imports on its way, the last of them when it is evaluated.
PRELOADED = (
    "densevit.cli",
    "densevit.train",
    "densevit.predictions",
    "scipy.stats",
    "torchmetrics",
    "psutil",
)
OF_RAY = {LAUNCHER: "ray", JOB: ""}
LOOK_SECONDS = 0.05
GRACE_SECONDS = 60.0  # a run that is asked to stop ends at its next step
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def code_path() -> str:
    """A PYTHONPATH on which the code of this process comes first."""
    code = str(Path(densevit.__file__).parents[1])
    return os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])


class Warm:
    """The starter's end: it runs one after another, each as a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "densevit.sweep.launch.warm"]
        self._process = subprocess.Popen(  # noqa: S603  (a list, no shell)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "PYTHONPATH": code_path(), "PYTHONUNBUFFERED": "1", **OF_RAY},
        )  # fmt: skip
        self._pid = 0

    def start(self, folder: RunFolder) -> None:
        """Start a run; the one before must have ended. Errors: `OSError`: the process is gone."""
        self._send({"folder": str(folder.path)})
        self._pid = self._answer()

    def poll(self) -> int | None:
        """How the run has ended, as `subprocess.Popen.poll`; None while it goes on."""
        if not select.select([self._process.stdout], [], [], 0)[0]:
            return None
        self._pid, code = 0, self._answer()
        return code

    def stop(self) -> int | None:
        """Ask the run to stop at its next step, wait, and kill it if it does not; as `poll`."""
        if not self._pid:
            return None
        with suppress(ProcessLookupError):  # it may have ended just now, and its answer waits
            os.kill(self._pid, signal.SIGTERM)
        if not select.select([self._process.stdout], [], [], GRACE_SECONDS)[0]:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._pid, code = 0, self._answer()
        return code

    def close(self) -> None:
        """End the process, and a run that it has with it."""
        self._process.stdin.close()
        self._process.wait()

    def _send(self, message: dict[str, object]) -> None:
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self) -> int:
        line = self._process.stdout.readline()
        if not line:
            raise OSError("the process that starts the runs has ended")
        return json.loads(line)


def serve() -> None:
    """Fork for each line of standard input until it is closed."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # the memory stays shared
    answers, sys.stdout = sys.stdout, sys.stderr
    while line := sys.stdin.buffer.raw.readline():
        folder = RunFolder(Path(json.loads(line)["folder"]))
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            _work(folder, parent)
        print(pid, file=answers, flush=True)
        code = _wait(pid)
        if code is None:
            return
        print(code, file=answers, flush=True)


def _work(folder: RunFolder, parent: int) -> NoReturn:
    """In the forked process: what `densevit train --run-dir` does, with its output in the log."""
    _end_with_parent(parent)
    with folder.log_file.open("ab") as log, Path(os.devnull).open("rb") as nothing:
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), target)
    sys.stdout = sys.__stdout__
    sys.argv = ["densevit", "train", "--run-dir", str(folder.path)]
    from densevit.cli import main

    code = main()
    # As a process of multiprocessing ends: what Python takes apart at its end takes longer to find
    # than the kernel, and the next run waits for it.
    atexit._run_exitfuncs()
    logging.shutdown()
    os._exit(code)


def _end_with_parent(parent: int) -> None:
    """Have the kernel signal this process when its parent is killed; elsewhere than on Linux a run
    then goes on to its end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)


def _wait(pid: int) -> int | None:
    """How a process ends; None if nobody wants to know any more, when it is ended here."""
    while True:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        # Nothing is sent while a run goes on: what can be read then is the end.
        if select.select([0], [], [], LOOK_SECONDS)[0]:
            break
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)
    return None


if __name__ == "__main__":
    serve()
