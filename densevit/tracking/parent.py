"""A sweep's run in an MLflow store."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from densevit.errors import UserError
from densevit.rundir import RunFolder, Status, run_folder
from densevit.tracking import store
from densevit.tracking.child import FINAL
from densevit.tracking.shown import Shelf, first_start, milliseconds

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class Parent:
    """A sweep's run in the store."""

    id: str
    experiment: str
    status: str
    end_time: int | None
    fresh: bool  # as `Child.fresh`


def begun(outputs: Path, shelf: Shelf, run_ids: Iterable[str]) -> int | None:
    """When a sweep began, in milliseconds; if its plan does not say so, when its first run did."""
    if shelf.begun:
        return milliseconds(float(shelf.begun))
    starts = []
    for run in dict.fromkeys([*shelf.runs, *run_ids]):
        with suppress(UserError):
            starts.append(first_start(run_folder(outputs, run)))
    return milliseconds(min(starts)) if starts else None


def sweep_state(outputs: Path, shelf: Shelf, run_ids: Iterable[str]) -> tuple[str, int | None]:
    """MLflow's word for a sweep, from its runs', and when the last of them ended."""
    runs = dict.fromkeys([*shelf.runs, *run_ids])
    found = [_seen(run_folder(outputs, run)) for run in runs]
    states = {status.state for status in found}
    if "running" in states:
        return "RUNNING", None
    if states <= {"finished", "stopped"}:
        word = "FINISHED"
    elif "failed" in states:
        word = "FAILED"
    else:  # what nobody has stopped is still to come
        word = "KILLED" if "cancelled" in states else "SCHEDULED"
    ended = max((s.updated for s in found if s.state in FINAL), default=0.0)
    return word, None if word == "SCHEDULED" else milliseconds(ended)


def _seen(folder: RunFolder) -> Status:
    """Where a run stands; one that has a damaged file has failed."""
    try:
        return folder.seen()
    except (UserError, TypeError, AttributeError):
        return Status("failed")


def is_orphan(client: MlflowClient, run: MlflowRun, parent: str) -> bool:
    """Whether a run has no parent in the store: one of two sweeps is shown under the first."""
    held = run.data.tags.get("mlflow.parentRunId")
    if held in (None, parent):
        return held is None
    found = store.by_id(client, held)
    return found is None or found.info.lifecycle_stage != "active"
