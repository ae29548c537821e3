"""The record of a sweep's last launch, plan.json in its folder: what must be in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from densevit.runs.record_file import CHECKED, RecordKind, Time, read_record


@CHECKED
class _RunFacts(TypedDict, total=False):
    label: str
    cell: str
    seed: int | str
    axes: dict[str, Any]
    differs: str
    config: dict[str, Any]
    resources: dict[str, Any]
    state: str


@CHECKED
class StoredRun(_RunFacts):
    """A run of a plan; of a dropped one, only id, cell, label and seed are kept."""

    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]+$")]  # the name of a folder


@CHECKED
class StoredPlan(TypedDict, total=False):
    """See `plan_record.plan_record`. `file` is the sweep file, `begun` when it was first run."""

    name: str
    description: str | None
    axes: list[str]
    set: list[str]
    dropped: list[StoredRun]
    runs: list[StoredRun]
    begun: Time
    git_sha: str | None
    file: str


STORED_PLAN = RecordKind(StoredPlan, "remove the file; the sweep's next launch writes it again")


def read_stored_plan(folder: Path) -> StoredPlan | None:
    """Return the plan in a sweep's folder, None without one. Errors: `UserError` if damaged."""
    return read_record(folder / "plan.json", STORED_PLAN)
