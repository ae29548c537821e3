"""Failures grouped by what went wrong, so that 36 times the same ImportError is one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from densevit.rundir import Cause
from densevit.sweep.state import Standing


@dataclass(frozen=True)
class Failures:
    """Runs that failed of the same cause; `message` is that of the first."""

    cause: Cause
    message: str
    runs: tuple[str, ...]


def grouped(runs: Mapping[str, Standing]) -> list[Failures]:
    """The failed runs, those of the commonest cause first."""
    found: dict[tuple[Cause, str], list[str]] = {}
    for run, standing in runs.items():
        if standing.state == "failed":
            found.setdefault((standing.cause, without_details(standing.why)), []).append(run)
    groups = [Failures(cause, runs[ids[0]].why, tuple(ids)) for (cause, _), ids in found.items()]
    return sorted(groups, key=lambda group: -len(group.runs))


def without_details(message: str) -> str:
    """A message without what differs from run to run: paths, ids, addresses and numbers."""
    text = re.sub(r"(?:/[\w.@%+-]+)+", "PATH", message)
    text = re.sub(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "ID", text)
    text = re.sub(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{12,}\b", "ID", text)
    return re.sub(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?", "N", text)
