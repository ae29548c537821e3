"""Run the command of a sweep's `notify:` when the sweep has ended."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from densevit.launch.foreground import Interrupted
from densevit.sweep.plan import Plan
from densevit.sweep.spec import PLACEHOLDER
from densevit.utils.console import warn

Ended = Literal["finished", "failed", "stopped"]
SECONDS = 60  # that the command may take


def notify(plan: Plan, state: Ended) -> None:
    """Run the sweep's command, if it has one. If the command fails, that is a warning."""
    if plan.spec.notify is None:
        return
    command = notification(plan, plan.spec.notify, state)
    try:
        done = subprocess.run(  # noqa: S602  (the user's own shell command; values are quoted)
            command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS
        )
        fault = f"exit code {done.returncode}" if done.returncode else ""
        lines = done.stderr.decode(errors="replace").split("\n") if fault else []
        reason = next((line for line in reversed(lines) if line.strip()), "")
    except (OSError, subprocess.TimeoutExpired) as error:
        fault, reason = type(error).__name__, str(error)
    if fault:
        warn(f"warning: notify: {fault}: {reason or command}")


def notification(plan: Plan, template: str, state: Ended) -> str:
    """Return the command, with its placeholders (`sweep.spec.PLACEHOLDERS`) filled and quoted."""
    states = Counter(status.state for status in plan.statuses().values())
    values = {
        "sweep": plan.name, "state": state, "runs": len(plan.runs),
        "finished": states["finished"], "failed": states["failed"],
    }  # fmt: skip
    return re.sub(PLACEHOLDER, lambda name: shlex.quote(str(values[name[1]])), template)


@contextmanager
def notifying_errors(plan: Plan) -> Iterator[None]:
    """Notify that the sweep has failed if an error ends the block; an interruption is none."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise
    except BaseException:
        notify(plan, "failed")
        raise
