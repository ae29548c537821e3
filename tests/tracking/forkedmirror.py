"""Mirrors in forked processes: in a test, a new one would mostly import MLflow."""

import multiprocessing
import os
import subprocess
from types import SimpleNamespace

import forked


def main(arguments):
    from densevit.tracking.__main__ import main

    return main(arguments)


def sweep(arguments):
    """Run `densevit-sweep` as `forked.sweep` does, with forked mirrors."""
    from densevit.tracking import mirror_process

    ForkedMirror.context = multiprocessing.get_context("fork")
    mirror_process.subprocess = STAND_IN
    return forked.sweep(arguments)


def _mirror(work, arguments, ours, stdin, said, environment):
    import logging

    ours.close()  # a fork has it as well, and would never notice its end
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # a mirror sets this by its environment
    os.dup2(stdin.fileno(), 0)
    stdin.close()
    forked._work(work, arguments, said, environment)


class ForkedMirror(forked.Run):
    """Replace the `subprocess.Popen` of `python -m densevit.tracking`."""

    context = forked.SERVER
    work = staticmethod(main)

    def __init__(self, command, *, stdin, stdout, stderr, env, start_new_session):
        arguments = command[command.index("densevit.tracking") + 1 :]
        theirs, self.stdin = self.context.Pipe(duplex=False)
        given = self.work, arguments, self.stdin, theirs, stdout.name, env
        super().__init__(self.context.Process(target=_mirror, args=given))
        theirs.close()

    def send_signal(self, number):
        os.kill(self.pid, number)


# The names that `densevit.tracking.mirror_process` uses from subprocess.
STAND_IN = SimpleNamespace(Popen=ForkedMirror, PIPE=None, TimeoutExpired=subprocess.TimeoutExpired)
