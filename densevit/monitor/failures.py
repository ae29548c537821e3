"""Failures grouped by their message, so that the same ImportError in 36 runs is one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from densevit.launch.run_state import RunState
from densevit.runs.status import Cause


@dataclass(frozen=True)
class Failures:
    """The ids of runs that failed for the same reason; `message` is that of the first."""

    cause: Cause
    message: str
    runs: tuple[str, ...]


def grouped(runs: Mapping[str, RunState]) -> list[Failures]:
    """Return the failed runs in groups, the largest first."""
    found: dict[tuple[Cause, str], list[str]] = {}
    for run_id, state in runs.items():
        if state.state == "failed":
            found.setdefault((state.cause, without_details(state.why)), []).append(run_id)
    groups = [Failures(cause, runs[ids[0]].why, tuple(ids)) for (cause, _), ids in found.items()]
    return sorted(groups, key=lambda group: -len(group.runs))


def without_details(message: str) -> str:
    """Return a message without what differs between runs: paths, ids, addresses and numbers."""
    text = re.sub(r"(?:/[\w.@%+-]+)+", "PATH", message)
    text = re.sub(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "ID", text)
    text = re.sub(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{12,}\b", "ID", text)
    return re.sub(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?", "N", text)
