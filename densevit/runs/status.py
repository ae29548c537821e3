"""The status that a run records: state, cause of failure, progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# `stopped`: by the sweep's early_stop rule, and therefore over; `cancelled`: by a person.
State = Literal["pending", "running", "finished", "failed", "cancelled", "stopped"]

# Causes of failure: out of memory; repeated timeouts without a step; non-finite loss or weights;
# the machine; a signal from an unknown sender; else the code, a setting or the data.
Cause = Literal["", "oom", "timeout", "nan", "node", "killed", "code"]
CAUSES: tuple[Cause, ...] = ("oom", "timeout", "nan", "node", "killed", "code")
LASTING = ("epoch", "epochs", "step", "steps", "started", "spent", "top1")

# A running run updates its status more often than this, except while it is evaluated.
SILENT_SECONDS = 1800.0
DIED = "ended without recording why (killed, or the machine went down); start it again to resume it"


@dataclass(frozen=True)
class Status:
    """The recorded state of a run: `epoch` of `epochs` and `step` of `steps` are done.

    Times are Unix seconds. `cause` classifies failures, `spent` is the total of all starts, `top1`
    the last val accuracy in percent; `images_per_second` and `seconds_left` exist in training.
    """

    state: State
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    message: str = ""
    cause: Cause = ""
    started: float = 0.0
    updated: float = 0.0
    spent: float = 0.0
    images_per_second: float = 0.0
    seconds_left: float = 0.0
    top1: float | None = None
    host: str = ""
    pid: int = 0
