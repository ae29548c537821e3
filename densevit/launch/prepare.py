"""Create the run directories and the sweep's records before a launch."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from densevit.launch.decide import RunActions
from densevit.runs.provenance import git_state
from densevit.sweep import search
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.plan_record import plan_record
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_atomic, write_json

WRITERS = 16  # threads


def prepare(plan: Plan, actions: RunActions) -> None:
    """Create the run directories; write the sweep file and the plan into the sweep's folder."""
    with ThreadPoolExecutor(WRITERS) as pool:  # many disk accesses at a time
        for _ in pool.map(lambda run: _create(plan, run), actions.to_run):
            pass
    for run in actions.done:
        if run.config.log_model:  # the mirror reads it there, also if set after the run
            plan.run_folder(run).create(run.config)
    write_atomic(plan.folder / "sweep.yaml", plan.spec.text)
    record = plan_record(plan, plan.statuses())
    record |= {
        "begun": _begun(plan),
        "git_sha": git_state(diff=False)["git_sha"],
        "file": str(plan.spec.file.resolve()),
    }
    write_json(plan.folder / "plan.json", record)
    rows = search.record(plan.spec)
    if rows is not None:
        write_json(search.record_file(plan.spec, plan.outputs), rows)


def _begun(plan: Plan) -> float:
    """Return when the sweep was first prepared in this folder, in Unix seconds."""
    try:
        earlier = read_json(plan.folder / "plan.json") or {}
    except UserError:
        earlier = {}
    return earlier.get("begun") or time.time()


def _create(plan: Plan, run: Run) -> None:
    folder = plan.run_folder(run)
    folder.create(run.config)
    if not folder.locked():  # else the stop request is for the running process
        folder.stop_file.unlink(missing_ok=True)
