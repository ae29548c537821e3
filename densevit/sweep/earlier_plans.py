"""What a sweep's folder holds of earlier plans: of another file, or runs left out since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densevit.config import yaml_file
from densevit.runs.directory import run_folder
from densevit.sweep.plan import Plan
from densevit.sweep.stored_plan import StoredPlan, read_stored_plan
from densevit.utils.console import count
from densevit.utils.errors import UserError

MOST_NAMED = 3


def check_owner(plan: Plan) -> None:
    """Refuse to replace the plan, report and MLflow run of another file with the same `name:`.

    A file that has moved, or that plans the same runs, goes on with them.
    Errors: `UserError`.
    """
    record, own = _record(plan), plan.spec.file.resolve()
    other = Path(record.get("file") or own)
    if other == own or not _plans(other, plan.name, record):
        return
    if {run["id"] for run in record.get("runs", [])} != {run.id for run in plan.runs}:
        raise UserError(
            f"{plan.spec.file}: name: {plan.name} is also the name of {other}, which plans other "
            f"runs, and {plan.folder} holds its plan and report; give one of the files another name"
        )


def _plans(file: Path, name: str, record: StoredPlan) -> bool:
    """Return whether a file still is a sweep of that name, which `--set` may have made longer."""
    try:
        own = yaml_file.load(file).get("name")
    except UserError:
        return False
    return own == name or (bool(record.get("set")) and name.startswith(f"{own}-"))


def dropped(plan: Plan) -> list[dict[str, Any]]:
    """Return the runs of earlier plans that are not in this one: `id`, `cell`, `label`, `seed`."""
    record, ids = _record(plan), {run.id for run in plan.runs}
    earlier = [*record.get("dropped", []), *record.get("runs", [])]
    left_out: dict[str, Mapping[str, Any]] = {
        run["id"]: run for run in earlier if run["id"] not in ids
    }
    names = ("id", "cell", "label", "seed")
    return [{name: run.get(name, "") for name in names} for run in left_out.values()]


def dropped_line(plan: Plan) -> str | None:
    """Return a line about the finished runs among them, None if there are none."""
    finished = [
        run
        for run in dropped(plan)
        if run_folder(plan.outputs, run["id"]).readable_status().state == "finished"
    ]
    if not finished:
        return None
    cells = {run["cell"]: f"{run['label']}, seed {run['seed']}" for run in reversed(finished)}
    named = list(cells.values())[::-1]
    more = f"; and {len(cells) - MOST_NAMED} more settings" if len(cells) > MOST_NAMED else ""
    return (
        f"Not in this plan: {count(len(finished), 'finished run')} of earlier plans of this sweep "
        f"({'; '.join(named[:MOST_NAMED])}{more}). Their results stay in {plan.outputs / 'runs'}; "
        f"their settings under `include:` bring them back."
    )


def _record(plan: Plan) -> StoredPlan:
    try:
        return read_stored_plan(plan.folder) or {}
    except UserError:  # a damaged record must not stop a sweep
        return {}
