"""A run in an MLflow store, and how its points, files and status are sent."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import read_metrics
from densevit.runs.status import State, Status
from densevit.tracking import mlflow_fields, sync_state
from densevit.tracking.log_points import log_points
from densevit.tracking.mlflow_fields import milliseconds
from densevit.utils.errors import UserError
from densevit.utils.files import last_lines

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

FINAL: tuple[State, ...] = ("finished", "failed", "cancelled", "stopped")

_MLFLOW_STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
    "stopped": "KILLED",
}


@dataclass
class Child:
    """A run in the store, and how far it was sent.

    `last_steps`: metric to its last step there; `offset`: bytes of metrics.jsonl that were sent,
    with a `mark` of the bytes before it; `files`: the artifacts there by name, with their stamps;
    `sweeps`: the sweeps that it belongs to, each with `mlflow_fields.plan_entry_digest`;
    `model`: "logged", or "refused" if the network could not be exported.
    """

    id: str
    experiment: str
    status: str
    end_time: int | None
    last_steps: dict[str, int]
    sweeps: dict[str, str] = field(default_factory=dict)
    last_start: int = 0  # see `sync_state.last_start`
    wants_model: bool = False
    model: str = ""
    offset: int = 0
    mark: str = ""
    files: dict[str, list[int | str]] = field(default_factory=dict)
    renamed: set[str] = field(default_factory=set)
    not_finite: set[str] = field(default_factory=set)
    new: bool = False  # just created: check once more that it is the only one

    @classmethod
    def of(cls, run: MlflowRun) -> Child:
        info = run.info
        return cls(info.run_id, info.experiment_id, info.status, info.end_time, steps_of(run))

    def resume(self, record: Mapping[str, Any]) -> None:
        """Take over what another mirror has recorded of the same run in the same store."""
        if record.get("mlflow_run_id") != self.id:
            return
        self.renamed |= set(record.get("renamed", ()))
        self.not_finite |= set(record.get("odd", ()))
        self.sweeps = {**record.get("sweeps", {}), **self.sweeps}
        if not {"offset", "mark", "last_steps"} <= record.keys():
            return
        if not self.is_behind(record["last_steps"]):  # else the store was reset to an older state
            self.offset, self.mark = record["offset"], record["mark"]
            self.files, self.model = record.get("files", {}), record.get("model", "")

    def has_all_lines(self, metrics: Path) -> bool:
        """Return whether all of a metrics file was sent."""
        size = metrics.stat().st_size if metrics.exists() else 0
        return (size, sync_state.tail_digest(metrics, self.offset)) == (self.offset, self.mark)

    def is_behind(self, steps: Mapping[str, int]) -> bool:
        """Return whether the store has less of a metric than was sent."""
        return any(self.last_steps.get(key, -1) < step for key, step in steps.items())

    def needs_model(self, *, retry: bool) -> bool:
        """Return whether the network is still to be logged; with `retry`, also a refused one."""
        done = self.model == "logged" or (self.model == "refused" and not retry)
        return self.wants_model and not done

    def record(self) -> dict[str, Any]:
        return {
            "mlflow_run_id": self.id,
            "experiment_id": self.experiment,
            "status": self.status,
            "sweeps": self.sweeps,
            "offset": self.offset,
            "mark": self.mark,
            "last_steps": self.last_steps,
            "files": self.files,
            "wants_model": self.wants_model,
            "model": self.model,
            "renamed": sorted(self.renamed),
            "odd": sorted(self.not_finite),
            "fresh": self.new,
        }


def send_points(
    client: MlflowClient, uri: str, folder: RunFolder, child: Child, record: Mapping[str, Any], *,
    wait: bool,
) -> list[str]:  # fmt: skip
    """Send the new lines of a run's metrics; `record` is its last record. Returns notes.

    With `wait`, the lines of a resumed run wait until it is as far as before: one comparison with
    the store's steps is then enough, instead of one per update.
    """
    if child.has_all_lines(folder.metrics_file):
        return []
    if wait and _newest_step(folder) < max(child.last_steps.values(), default=-1):
        return []
    # Query the store each time: another mirror may have sent some points, and a store that was
    # reset to an older state may have lost some.
    run = client.get_run(child.id)
    known, child.last_steps, child.status = child.last_steps, steps_of(run), run.info.status
    if child.is_behind(known):
        child.offset, child.mark = 0, ""
    child.resume(record)  # now that the store's last steps are known
    grown = child.mark == sync_state.tail_digest(folder.metrics_file, child.offset)
    lines, offset = read_metrics(folder.metrics_file, child.offset if grown else 0)
    mark = sync_state.tail_digest(
        folder.metrics_file, offset
    )  # now: the file may be truncated meanwhile
    found = mlflow_fields.new_points(
        lines, child.last_steps, partial(_stored_steps, client, child.id)
    )
    log_points(client, uri, child.id, found.points)
    for point in found.points:
        child.last_steps[point.key] = max(point.step, child.last_steps.get(point.key, -1))
    child.offset, child.mark = offset, mark
    notes = []
    if renamed := {n: k for n, k in found.renamed.items() if k not in child.renamed}:
        child.renamed |= set(renamed.values())
        names = ", ".join(f"{name} is called {key}" for name, key in renamed.items())
        notes.append(f"{names} in MLflow, which does not accept its characters")
    if new := {k: s for k, s in found.not_finite.items() if k not in child.not_finite}:
        child.not_finite |= new.keys()
        steps = ", ".join(f"{key} at step {step}" for key, step in new.items())
        notes.append(f"not finite: {steps}")
    return notes


def _newest_step(folder: RunFolder) -> float:
    """Return the last complete line's step, from the end of the metrics file; inf if unknown."""
    for line in reversed(last_lines(folder.metrics_file, 2)):
        with suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return math.inf


def _stored_steps(client: MlflowClient, mlflow_id: str, key: str) -> set[int]:
    return {point.step for point in client.get_metric_history(mlflow_id, key)}


def send_files(
    client: MlflowClient, child: Child, files: Mapping[str, tuple[Path, list[int | str]]]
) -> None:
    for name, (file, stamp) in files.items():
        if child.files.get(name) != stamp:
            log_file(client, child.id, file, name)
            child.files = {**child.files, name: stamp}


def send_model(client: MlflowClient, uri: str, folder: RunFolder, child: Child) -> list[str]:
    """Log a finished run's network; return a note if it cannot be exported."""
    from densevit.tracking.mlflow_model import log_model

    try:
        log_model(client, child.id, folder, uri)
    except UserError as error:
        child.model = "refused"
        return [f"{folder.path.name}: {error}; densevit sync NAME tries it again"]
    child.model = "logged"
    return []


def log_file(client: MlflowClient, mlflow_id: str, file: Path, name: str) -> None:
    """Send a file as an artifact called `name`, which may differ from the file's name."""
    target = str(Path(name).parent)
    with tempfile.TemporaryDirectory() as folder:
        if file.name != Path(name).name:
            file = Path(shutil.copy(file, Path(folder) / Path(name).name))
        client.log_artifact(mlflow_id, str(file), None if target == "." else target)


def steps_of(run: MlflowRun) -> dict[str, int]:
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def set_status(client: MlflowClient, child: Child, status: Status) -> None:
    state = _MLFLOW_STATUS[status.state]
    end = milliseconds(status.updated) if status.state in FINAL else None
    if child.status == state and end in (None, child.end_time):
        return
    set_state(client, child.id, state, end)
    child.status, child.end_time = state, end


def set_state(client: MlflowClient, mlflow_id: str, status: str, end: int | None) -> None:
    if end is None:
        client.update_run(mlflow_id, status=status)
    else:
        client.set_terminated(mlflow_id, status, end)
