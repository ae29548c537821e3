"""A process that has imported everything and forks itself for each run: small runs start at once.

`python -m densevit.launch.ray.fork_server` reads one line of JSON per run from standard input, one
run at a time. It answers with the process id and, at the end, with the exit code. It forks before
any thread or GPU is in use, so that a run starts as in a new process and leaves nothing behind.
When the client is gone, for whatever reason, the run ends soon, with a checkpoint if it can.
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
from typing import IO, NoReturn

import densevit
from densevit.runs.directory import RunFolder
from densevit.runs.provenance import JOB, LAUNCHER
from densevit.utils.distributed import without_rendezvous
from densevit.utils.errors import exit_code

# Modules that a run imports, the last of them for its evaluation.
PRELOADED = (
    "densevit.train.loop",
    "densevit.evaluate.predictions",
    "scipy.stats",
    "torchmetrics",
    "psutil",
)
OF_RAY = {LAUNCHER: "ray", JOB: ""}
POLL_SECONDS = 0.05
GRACE_SECONDS = 60.0  # a run ends at the next step after a stop request
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def code_path() -> str:
    """Return a PYTHONPATH on which the code of this process comes first."""
    code = str(Path(densevit.__file__).parents[1])
    return os.pathsep.join([code, *filter(None, [os.environ.get("PYTHONPATH")])])


class ForkServer:
    """The client of the fork server: it starts one run after another, each in its own process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "densevit.launch.ray.fork_server"]
        self._server = subprocess.Popen(  # noqa: S603  (a list, no shell)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**without_rendezvous(os.environ), "PYTHONPATH": code_path(),
                 "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8",
                 "OMP_WAIT_POLICY": "passive", **OF_RAY},
        )  # fmt: skip
        self._requests, self._answers = _pipe(self._server.stdin), _pipe(self._server.stdout)
        self._pid = 0

    def start(self, folder: RunFolder) -> None:
        """Start a run; the one before must have ended. Errors: `OSError` if the server is gone."""
        self._requests.write(json.dumps({"folder": str(folder.path)}).encode() + b"\n")
        self._requests.flush()
        self._pid = self._answer()

    def poll(self) -> int | None:
        """Return the run's exit code as `subprocess.Popen.poll` does; None while it runs."""
        if not select.select([self._answers], [], [], 0)[0]:
            return None
        self._pid, code = 0, self._answer()
        return code

    def stop(self) -> int | None:
        """Ask the run to stop at its next step, wait, kill it if needed; return as `poll`."""
        if not self._pid:
            return None
        with suppress(ProcessLookupError):  # it may have just ended; its exit code is read below
            os.kill(self._pid, signal.SIGTERM)
        if not select.select([self._answers], [], [], GRACE_SECONDS)[0]:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._pid, code = 0, self._answer()
        return code

    def close(self) -> None:
        """End the server, and its run if there is one."""
        self._requests.close()
        self._server.wait()

    def _answer(self) -> int:
        line = self._answers.readline()
        if not line:
            raise OSError("the process that starts the runs has ended")
        return int(line)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise OSError("a pipe to the process that starts the runs is missing")
    return stream


def serve() -> None:
    """Fork for each line of standard input until it is closed."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # the memory stays shared
    answers, sys.stdout = sys.stdout, sys.stderr
    requests = os.fdopen(0, "rb", buffering=0, closefd=False)  # `_wait` selects on what is unread
    while line := requests.readline():
        folder = RunFolder(Path(json.loads(line)["folder"]))
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            _train(folder, parent)
        print(pid, file=answers, flush=True)
        code = _wait(pid)
        if code is None:
            return
        print(code, file=answers, flush=True)


def _train(folder: RunFolder, parent: int) -> NoReturn:
    """Do what `densevit train --run-dir` does, in the forked process, with output in the log."""
    _end_with_parent(parent)
    with folder.log_file.open("ab") as log, Path(os.devnull).open("rb") as nothing:
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), target)
    sys.stdout = sys.__stdout__
    sys.argv = ["densevit", "train", "--run-dir", str(folder.path)]
    from densevit.train.execute import execute

    code = exit_code("densevit", lambda: execute(folder))
    # Exit as multiprocessing does: the kernel frees memory faster than Python's own cleanup, and
    # the next run waits for it.
    atexit._run_exitfuncs()
    logging.shutdown()
    os._exit(code)


def _end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent is killed (Linux; elsewhere the run goes on)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)


def _wait(pid: int) -> int | None:
    """Return a process's exit code; if the client is gone, end the process and return None."""
    while True:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        # The client sends nothing while a run works: readable input means it is gone.
        if select.select([0], [], [], POLL_SECONDS)[0]:
            break
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return None


if __name__ == "__main__":
    serve()
