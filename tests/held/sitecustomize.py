"""Hold runs at a step, to test what happens to a run in the middle of its training.

Python imports this file at its start if this folder is on the PYTHONPATH. Each run then waits
before the step that the file `hold` or `hold-RUN` in its outputs folder names, until the file is
gone, names a later step, or the run is requested to stop.
"""

import sys
import time
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


class Holding(MetaPathFinder):
    """Import the training loop so that `held` can make it wait between two steps."""

    def find_spec(self, name, path=None, target=None):
        if name != "densevit.train.loop":
            return None
        spec = PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module._stop_or_save = held(module)

        spec.loader.exec_module = exec_module
        return spec


def held(train):
    boundary = train._stop_or_save

    def wait(trainer):
        told = None
        while (step := _hold(trainer)) is not None and not trainer.stop_signal():
            if told != step:
                train._write_status(trainer)  # the step in status.json is what a test waits for
                told = step
            time.sleep(0.02)
        boundary(trainer)

    return wait


def _hold(trainer):
    """Return the step that the run is held at; None if it may continue."""
    run = trainer.folder.path
    for name in ("hold", f"hold-{run.name}"):
        with suppress(FileNotFoundError, ValueError):  # the file is missing, or is being written
            step = int((run.parents[1] / name).read_text())
            if trainer.step >= step:
                return step
    return None


sys.meta_path.insert(0, Holding())
