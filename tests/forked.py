"""Run commands in processes forked from a server that has already imported their modules.

A new process imports torch and timm for longer than a whole tiny run takes. A forked process also
has its own arguments, environment, session and output, and it starts image-loading processes in the
usual way. Other tests check that the real command behaves alike.
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

from densevit.results.report import figures

METHOD = "forkserver"
SERVER = multiprocessing.get_context(METHOD)
SERVER.set_forkserver_preload(
    ["densevit.train.loop", "densevit.train.execute", "densevit.cli.main", "densevit.tracking.__main__",
     "mlflow.store.tracking.sqlalchemy_store", "pyarrow.parquet", "densevit.results.report.write",
     "densevit.results.tables.table"]
)  # fmt: skip


def be_oneself():
    """Give a forked process the state of a new one."""
    os.setsid()  # the image-loading processes get signals to the group
    # They must not come from their own fork server, which would import everything again.
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
    """Run the command `densevit`; a run can be held at a step (see `holding`)."""
    from held.sitecustomize import held

    from densevit.cli.main import main
    from densevit.train import loop

    loop._stop_or_save = held(loop)
    return main(arguments)


def script(arguments):
    """Run `python FILE ...`."""
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")


def done(arguments, work=command, cwd="."):
    """Return the result of a process that runs `arguments`, as `subprocess.run` does."""
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
    """A run of a sweep with the methods of `subprocess.Popen` that the local launcher uses."""

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
        signal.signal(number, signal.SIG_DFL)  # and not the handlers of the launcher
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _work(command, arguments, said, environment)


def _start_training(context, folder, environment):
    """Replace `densevit.launch.process.start_training`: start no new Python."""
    arguments = ["train", "--run-dir", str(folder.path)]
    return Run(context.Process(target=_train, args=(arguments, folder.log_file, dict(environment))))


def start_training(folder, environment, *, own_session):
    return _start_training(SERVER, folder, environment)


def sweep(arguments):
    """Run `densevit-sweep` with reports without figures; its runs are forked from this process."""
    from densevit.cli.main import main_sweep
    from densevit.launch import local

    figures.draw_all = lambda *_: {}

    forking = multiprocessing.get_context("fork")
    local.start_training = lambda folder, environment, *, own_session: _start_training(
        forking, folder, environment
    )
    return main_sweep(arguments)


class Forked:
    """A process that runs `arguments` and writes its output to the file `said`."""

    def __init__(self, arguments, said, work=command, **environment):
        self.said = said
        everything = {**os.environ, **environment}
        self.process = SERVER.Process(target=_work, args=(work, arguments, said, everything))
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self, seconds=600):
        """Return its exit code."""
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
    """Two processes of one run, with the environment and the rendezvous that torchrun provides."""

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

    def wait(self, seconds=600):
        """Return their exit codes."""
        return [rank.wait(seconds) for rank in self.ranks]

    def output(self):
        return self.ranks[0].output()
