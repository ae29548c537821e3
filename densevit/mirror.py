"""How run directories are sent to MLflow: each (metric, step) once, whatever happened before.

How far a run was sent is asked of the store itself, as the last step of each metric: that stays
right when a mirror was killed between sending and remembering, and when a resumed run cut its
metrics file back and writes the same steps again. A run's `tracking.json` saves reading again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.config import RunConfig, applies, is_execution
from densevit.errors import UserError
from densevit.mlflow_store import (
    alone,
    describe,
    find_living,
    find_or_make_experiment,
    find_tagged,
    open_store,
    without_password,
)
from densevit.rundir import (
    RunFolder,
    State,
    Status,
    read_json,
    read_metrics,
    run_folder,
    sweep_folder,
    write_json,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

FINAL: tuple[State, ...] = ("finished", "failed", "cancelled", "stopped")
BATCH = 1000  # metrics a call, MLflow's limit

_MLFLOW_STATUS = {
    "pending": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
    "stopped": "KILLED",
}
# The store answers, and finds fault with one run: the others can be sent.
_FAULTS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}


@dataclass
class Mirroring:
    """Some runs, their store, and what this process has found in it so far."""

    outputs: Path
    uri: str
    run_ids: Sequence[str]
    sweep: str | None
    children: dict[str, _Child] = field(default_factory=dict)
    parent: str | None = None

    def look(self, last: bool) -> list[str]:
        """Send what is new, with `last` also the sweep's report and state.

        Returns a line for each thing that could not be done; a later look tries it again.
        """
        try:
            with alone(self.outputs, self.uri):
                return self._send(open_store(self.uri), last)
        except Exception as error:  # whatever it is, the runs must not suffer from it
            self.children.clear()  # what has arrived is asked again
            self.parent = None
            text = without_password(_one_line(error))
            return [f"MLflow at {without_password(self.uri)}: {text}; it will be sent later"]

    def _send(self, client: MlflowClient, last: bool) -> list[str]:
        from mlflow.exceptions import MlflowException

        problems = []
        for run_id in self.run_ids:
            try:
                self._send_run(client, run_id)
            except (UserError, ValueError, KeyError, TypeError) as error:
                problems.append(f"{run_id}: {_one_line(error)}")
            except MlflowException as error:
                if error.error_code not in _FAULTS:
                    raise
                self.children.pop(run_id, None)
                problems.append(f"{run_id}: {_one_line(error)}")
        if last and self.parent is not None and self.sweep is not None:
            _close_parent(
                client, self.parent, sweep_folder(self.outputs, self.sweep), self._states()
            )
        return problems

    def _states(self) -> set[State]:
        return {run_folder(self.outputs, run_id).status().state for run_id in self.run_ids}

    def _send_run(self, client: MlflowClient, run_id: str) -> None:
        folder = run_folder(self.outputs, run_id)
        # Before the metrics: a run writes its final state after its last line.
        status = folder.status()
        if status.state == "pending" and not folder.metrics_file.exists():
            return
        child = self.children.get(run_id)
        if child is None:
            child = self._child(client, folder, status)
        grown = child.mark == _mark(folder.metrics_file, child.offset)
        lines, offset = read_metrics(folder.metrics_file, child.offset if grown else 0)
        points = _new_points(lines, child.last_steps)
        for start in range(0, len(points), BATCH):
            client.log_batch(child.id, metrics=points[start : start + BATCH])
        child.last_steps |= {point.key: point.step for point in points}
        child.offset, child.mark = offset, _mark(folder.metrics_file, offset)
        _set_status(client, child, status)
        self.children[run_id] = child
        record = {
            "store": without_password(self.uri),
            "mlflow_run_id": child.id,
            "status": status.state,
            "sweeps": child.sweeps,
            "offset": child.offset,
            "mark": child.mark,
            "last_steps": child.last_steps,
        }
        if record != remembered(folder, record["store"]):
            write_json(folder.tracking_file, record)

    def _child(self, client: MlflowClient, folder: RunFolder, status: Status) -> _Child:
        """The run in the store, made if it is not there, with its parameters and tags."""
        config, run_id = folder.config(), folder.path.name
        experiment = find_or_make_experiment(client, config.experiment_name, self.outputs, self.uri)
        parent = self._parent(client, experiment, status)
        held = remembered(folder, without_password(self.uri))
        run = find_living(client, held.get("mlflow_run_id")) or find_tagged(
            client, experiment, "densevit.run", run_id
        )
        if run is None:
            name = f"{config.cl_mode}-seed{config.seed}-{run_id[:6]}"
            tags = {"densevit.run": run_id}
            run = client.create_run(experiment, _started(status), tags, name)
        sweeps = {s for s in run.data.tags.get("densevit.sweeps", "").split(",") if s}
        sweeps |= {self.sweep} if self.sweep else set()
        tags = _tags(folder, config)
        if sweeps:
            tags["densevit.sweeps"] = ",".join(sorted(sweeps))
        # A run that belongs to two sweeps is shown under the first.
        if parent is not None and "mlflow.parentRunId" not in run.data.tags:
            tags["mlflow.parentRunId"] = parent
        describe(client, run, _params(config), tags)
        steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        child = _Child(run.info.run_id, run.info.status, run.info.end_time, sorted(sweeps), steps)
        if steps == held.get("last_steps"):
            child.offset, child.mark = held["offset"], held["mark"]
        return child

    def _parent(self, client: MlflowClient, experiment: str, status: Status) -> str | None:
        """The sweep's run in the store, open."""
        if self.sweep is None or self.parent is not None:
            return self.parent
        run = find_tagged(client, experiment, "densevit.sweep", self.sweep)
        if run is None:
            tags = {"densevit.sweep": self.sweep}
            run = client.create_run(experiment, _started(status), tags, self.sweep)
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        self.parent = run.info.run_id
        return self.parent


@dataclass
class _Child:
    """A run in the store. `last_steps`: metric to its last step there; `offset`: in bytes."""

    id: str
    status: str
    end_time: int | None
    sweeps: list[str]
    last_steps: dict[str, int]
    offset: int = 0
    mark: str = ""


def remembered(folder: RunFolder, store: str) -> dict[str, Any]:
    """What a mirror wrote down about a run for this store; empty if nothing or unreadable."""
    try:
        record = read_json(folder.tracking_file) or {}
    except UserError:
        return {}
    return record if record.get("store") == store else {}


def _params(config: RunConfig) -> dict[str, str]:
    """Every field that means something for the run, also at its default."""
    return {
        name: _text(value)
        for name, value in config
        if not is_execution(name) and applies(name, config)
    }


def _tags(folder: RunFolder, config: RunConfig) -> dict[str, str]:
    """The cell, and how the run is executed: unlike a parameter it may change at a restart."""
    execution = {
        f"densevit.{name}": _text(value)
        for name, value in config
        if is_execution(name) and value is not None
    }
    ids = read_json(folder.identity_file) or {}
    return {"densevit.cell": ids["cell"]} | execution


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _new_points(lines: list[dict[str, Any]], last_steps: dict[str, int]) -> list[Metric]:
    """The metrics of some lines, without the steps that were sent before."""
    from mlflow.entities import Metric

    last, points = dict(last_steps), []
    for line in lines:
        step, time = int(line["step"]), _milliseconds(line["time"])
        for key, value in line.items():
            number = isinstance(value, int | float)
            if number and key not in ("step", "epoch", "time") and step > last.get(key, -1):
                last[key] = step
                points.append(Metric(key, float(value), time, step))
    return points


def _set_status(client: MlflowClient, child: _Child, status: Status) -> None:
    wanted = _MLFLOW_STATUS[status.state]
    end = _milliseconds(status.updated) if status.state in FINAL else None
    if child.status == wanted and end in (None, child.end_time):
        return
    if end is None:
        client.update_run(child.id, status=wanted)
    else:
        client.set_terminated(child.id, wanted, end)
    child.status, child.end_time = wanted, end


def _close_parent(client: MlflowClient, parent: str, folder: Path, states: set[State]) -> None:
    """The sweep's files, and a state that follows from its runs'."""
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("plan.json")]):
        client.log_artifact(parent, str(file))
    if (folder / "report").is_dir():
        client.log_artifacts(parent, str(folder / "report"), "report")
    if "running" in states:
        return
    if states == {"finished"}:
        client.set_terminated(parent, "FINISHED")
    else:
        client.set_terminated(parent, "FAILED" if "failed" in states else "KILLED")


def _mark(path: Path, offset: int) -> str:
    """A fingerprint of the bytes before an offset; it changes when the file was cut before it."""
    length = min(offset, 256)
    if length == 0 or not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(offset - length)
        return hashlib.sha256(file.read(length)).hexdigest()[:16]


def _started(status: Status) -> int | None:
    return _milliseconds(status.started or status.updated) or None


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
