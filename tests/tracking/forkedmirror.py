"""Mirrors in forked processes: a new one imports MLflow for longer than it works in a test."""

import os

import forked


def _mirror(arguments, stdin, said, environment):
    import logging

    from densevit.tracking.__main__ import main

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # as in a mirror, by its environment
    os.dup2(stdin.fileno(), 0)
    stdin.close()
    forked._work(main, arguments, said, environment)


class ForkedMirror(forked.Run):
    """In the place of the `subprocess.Popen` of `python -m densevit.tracking`."""

    def __init__(self, command, *, stdin, stdout, stderr, env, start_new_session):
        arguments = command[command.index("densevit.tracking") + 1 :]
        theirs, self.stdin = forked.SERVER.Pipe(duplex=False)
        given = arguments, theirs, stdout.name, env
        super().__init__(forked.SERVER.Process(target=_mirror, args=given))
        theirs.close()

    def send_signal(self, number):
        os.kill(self.pid, number)
