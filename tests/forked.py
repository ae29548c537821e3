"""Commands in processes forked from a server that has imported what they need.

A new process imports torch and timm for longer than a whole tiny run takes. A forked one has
arguments, an environment, a session and an output of its own as well, and starts the processes that
load its pictures as any other does. That the real command does the same has tests of its own.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from torch.distributed import TCPStore

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["densevit.train", "densevit.lifecycle", "densevit.cli", "densevit.tracking.__main__",
     "mlflow.store.tracking.sqlalchemy_store"]
)  # fmt: skip


def be_oneself():
    """What a process has of its own that no server has forked."""
    os.setsid()  # who signals or kills the group means the processes that load pictures too
    # Those are not to come from a server of their own, which would import everything once more.
    multiprocessing.set_start_method(None, force=True)


def _work(work, arguments, said, environment, errors=None, cwd="."):
    be_oneself()
    for number, path in ((1, said), (2, errors or said)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["densevit", *arguments]
    sys.exit(work(arguments))


def command(arguments):
    """The command `densevit`; a run can be held at a step (see `holding`)."""
    from held.sitecustomize import held

    from densevit import train
    from densevit.cli import main

    train._boundary = held(train)
    return main(arguments)


def script(arguments):
    """`python FILE ...`"""
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")


def done(arguments, work=command, cwd="."):
    """What `subprocess.run` gives of a process that has worked on `arguments`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("said", "errors")]
        given = [*map(str, arguments)]
        process = SERVER.Process(
            target=_work, args=(work, given, files[0], dict(os.environ), files[1], cwd)
        )
        process.start()
        process.join(240)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(files[1].read_text())
        return subprocess.CompletedProcess(
            given, process.exitcode, *(file.read_text() for file in files)
        )


class Run:
    """A run of a sweep, as the local launcher holds it: what it asks of a `subprocess.Popen`."""

    def __init__(self, process):
        self.process = process
        process.start()
        self.pid = process.pid
        self.terminate, self.kill = process.terminate, process.kill

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("densevit", timeout)
        return self.process.exitcode


def _train(arguments, said, environment):
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # and not what the launcher does
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _work(command, arguments, said, environment)


def _start_training(context, folder, environment):
    """In the place of `densevit.sweep.launch.training.start_training`, without a new Python."""
    arguments = ["train", "--run-dir", str(folder.path)]
    return Run(context.Process(target=_train, args=(arguments, folder.log_file, dict(environment))))


def start_training(folder, environment, *, own_session):
    return _start_training(SERVER, folder, environment)


def sweep(arguments):
    """The command `densevit-sweep`; what it starts is forked from it."""
    from densevit.cli import main_sweep
    from densevit.sweep.launch import local

    forking = multiprocessing.get_context("fork")
    local.start_training = lambda folder, environment, *, own_session: _start_training(
        forking, folder, environment
    )
    return main_sweep(arguments)


class Forked:
    """A process that works on `arguments` and writes to the file `said`."""

    def __init__(self, arguments, said, work=command, **environment):
        self.said = said
        everything = {**os.environ, **environment}
        self.process = SERVER.Process(target=_work, args=(work, arguments, said, everything))
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self, seconds=240):
        """Its exit code."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(self.output())
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def output(self):
        return self.said.read_text() if self.said.exists() else ""


class Ranks:
    """Two processes of one run, with the environment and the meeting place that torchrun gives."""

    def __init__(self, arguments, said, work=command):
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        meeting = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "WORLD_SIZE": "2",
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip
        self.said = said
        self.ranks = [
            Forked(arguments, said, work, RANK=str(rank), LOCAL_RANK=str(rank), **meeting)
            for rank in range(2)
        ]

    def poll(self):
        codes = [rank.poll() for rank in self.ranks]
        return None if None in codes else codes

    def wait(self, seconds=240):
        """Their exit codes."""
        return [rank.wait(seconds) for rank in self.ranks]

    def output(self):
        return self.ranks[0].output()
