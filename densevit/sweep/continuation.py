"""Find runs that go on from the weights of others, or could."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densevit.config.run_config import SCIENCE
from densevit.runs.directory import RunFolder
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.stored_plan import read_stored_plan
from densevit.utils.console import count
from densevit.utils.errors import UserError

MOST = 5  # files that are listed


def start_lines(plan: Plan) -> list[str]:
    """Return a line per file of initial weights, and one on runs that could continue others."""
    sources = {
        str(run.config.init_checkpoint): run.config.init_sha256
        for run in plan.grid.cells
        if run.config.init_checkpoint is not None
    }
    lines = [f"init_checkpoint: {s} ({d}{_trained(s)})" for s, d in [*sources.items()][:MOST]]
    lines += [f"init_checkpoint: and {len(sources) - MOST} more"] if len(sources) > MOST else []
    longer = shorter_runs(plan)
    if longer:
        run, shorter, epochs = longer[0]
        lines.append(
            f"{count(len(longer), 'run')} would train again what a finished run has, with more "
            f"epochs: {run.id} all {run.config.epochs}, of which {shorter} has {epochs}; to go on "
            f"from its weights, with a schedule of its own, set init_checkpoint: "
            f"{plan.outputs / 'runs' / shorter} and the epochs that are missing"
        )
    return lines


def shorter_runs(plan: Plan) -> list[tuple[Run, str, int]]:
    """Return the runs to come that differ from a finished one only in more epochs, its id, and its
    epochs. The finished ones are those of the sweep's last launch."""
    try:
        record = read_stored_plan(plan.folder) or {}
    except UserError:
        return []
    earlier: dict[str, list[tuple[int, str]]] = {}
    for entry in record.get("runs", ()):
        config = entry.get("config", {})
        epochs = config.get("epochs")
        if isinstance(epochs, int):
            earlier.setdefault(_rest(config), []).append((epochs, entry["id"]))
    found = []
    for run in plan.runs if earlier else ():
        known = earlier.get(_rest(run.config.model_dump()), [])
        fewer = sorted((e, i) for e, i in known if e < run.config.epochs and _finished(plan, i))
        if fewer and plan.run_folder(run).readable_status().state == "pending":
            found.append((run, fewer[-1][1], fewer[-1][0]))
    return found


def _rest(config: Mapping[str, Any]) -> str:
    """Return everything that identifies a run but its epochs and the place of its weights."""
    names = [name for name in (*SCIENCE, "seed") if name not in ("epochs", "init_checkpoint")]
    return json.dumps([config.get(name) for name in names])


def _finished(plan: Plan, run_id: str) -> bool:
    return RunFolder(plan.outputs / "runs" / run_id).readable_status().state == "finished"


def _trained(source: str) -> str:
    """Return `, run ID after N epochs` for the directory of a run."""
    folder = RunFolder(Path(source))
    epochs = folder.progress().get("epoch") if folder.path.is_dir() else None
    return "" if epochs is None else f", run {folder.path.name} after {count(epochs, 'epoch')}"
