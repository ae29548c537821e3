"""Hold the runs of an outputs folder at a step; tests/held/sitecustomize.py makes them wait."""

import os
from pathlib import Path

# The environment of the command that starts the runs, which inherit it.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(
    [str(Path(__file__).parent / "held"), *filter(None, [os.environ.get("PYTHONPATH")])]
)}  # fmt: skip


def hold(outputs, step, run=None):
    """Make every run, or only `run`, wait before a step until it is released or stopped."""
    outputs.mkdir(exist_ok=True)
    (outputs / (f"hold-{run.path.name}" if run else "hold")).write_text(str(step))


def let_go(outputs):
    for file in outputs.glob("hold*"):
        file.unlink()
