"""Hold the runs of an outputs folder at a step; tests/held/sitecustomize.py is the other end."""

import os
from pathlib import Path

# For the command that starts the runs; they inherit it.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(
    [str(Path(__file__).parent / "held"), *filter(None, [os.environ.get("PYTHONPATH")])]
)}  # fmt: skip


def hold(outputs, step, run=None):
    """Let each run, or only the one of a folder, wait before a step until it is let go or stopped."""
    outputs.mkdir(exist_ok=True)
    (outputs / (f"hold-{run.path.name}" if run else "hold")).write_text(str(step))


def let_go(outputs):
    for file in outputs.glob("hold*"):
        file.unlink()
