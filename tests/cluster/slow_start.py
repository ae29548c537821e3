"""A Python whose trainings never reach a step, to test the time limit."""

import runpy
import subprocess
import sys

if __name__ == "__main__":
    started = subprocess.Popen

    class Asleep(started):
        def __init__(self, command, *more, **options):
            if isinstance(command, list) and "--run-dir" in command:
                command = ["/bin/sh", "-c", "trap 'exit 75' USR2 TERM; while :; do sleep 0.2; done"]
            super().__init__(command, *more, **options)

    subprocess.Popen = Asleep
    arguments = sys.argv[1:]
    module = arguments[arguments.index("-m") + 1]
    sys.argv = [module, *arguments[arguments.index("-m") + 2 :]]
    runpy.run_module(module, run_name="__main__")
