"""A run in an MLflow store, and what is sent to it."""

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

from densevit.rundir import RunFolder, State, Status, last_lines, read_metrics
from densevit.tracking import sent, shown
from densevit.tracking.bulk import log_points
from densevit.tracking.shown import milliseconds

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
    """A run in the store, as it is there and as far as it was sent.

    `last_steps`: metric to its last step there; `offset`: of metrics.jsonl, in bytes, with a `mark`
    of what stands before it. `files` are the artifacts that are there, by name, with their stamps.
    `sweeps` are those that it is shown under, with what each says of it (`shown.place`).
    `model` is "logged", or "refused" when the network could not be exported.
    """

    id: str
    experiment: str
    status: str
    end_time: int | None
    last_steps: dict[str, int]
    sweeps: dict[str, str] = field(default_factory=dict)
    started_last: int = 0  # see `sent.started_last`
    wants_model: bool = False
    model: str = ""
    offset: int = 0
    mark: str = ""
    files: dict[str, list[int | str]] = field(default_factory=dict)
    renamed: set[str] = field(default_factory=set)
    odd: set[str] = field(default_factory=set)
    fresh: bool = False  # made just now: whether it is the only one is asked once more

    @classmethod
    def of(cls, run: MlflowRun) -> Child:
        info = run.info
        return cls(info.run_id, info.experiment_id, info.status, info.end_time, steps_of(run))

    def resume(self, held: Mapping[str, Any]) -> None:
        """Take over what another mirror remembers of the same run in the same store."""
        if held.get("mlflow_run_id") != self.id:
            return
        self.renamed |= set(held.get("renamed", ()))
        self.odd |= set(held.get("odd", ()))
        self.sweeps = {**held.get("sweeps", {}), **self.sweeps}
        if not {"offset", "mark", "last_steps"} <= held.keys():
            return
        if not self.is_behind(held["last_steps"]):  # else the store was put back meanwhile
            self.offset, self.mark = held["offset"], held["mark"]
            self.files, self.model = held.get("files", {}), held.get("model", "")

    def is_at_the_end(self, metrics: Path) -> bool:
        """Whether all of a metrics file was sent."""
        size = metrics.stat().st_size if metrics.exists() else 0
        return (size, sent.mark(metrics, self.offset)) == (self.offset, self.mark)

    def is_behind(self, steps: Mapping[str, int]) -> bool:
        """Whether the store has less of a metric than was sent."""
        return any(self.last_steps.get(key, -1) < step for key, step in steps.items())

    def model_is_settled(self, *, again: bool = False) -> bool:
        """Whether nothing is to be done for the network; `again`: one that was refused counts."""
        done = self.model == "logged" or (self.model == "refused" and not again)
        return done or not self.wants_model

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
            "odd": sorted(self.odd),
            "fresh": self.fresh,
        }


def send_points(
    client: MlflowClient, uri: str, folder: RunFolder, child: Child, held: Mapping[str, Any], *,
    patient: bool,
) -> list[str]:  # fmt: skip
    """Send the new lines of a run's metrics; `held` is what was remembered last. Returns notes.

    With patience those of a run that was resumed wait until it is as far as it was before: then it
    takes one comparison with the store's steps and not one a look.
    """
    if child.is_at_the_end(folder.metrics_file):
        return []
    if patient and _newest_step(folder) < max(child.last_steps.values(), default=-1):
        return []
    # Asked again each time: another mirror may have sent some of it, and a store that was put back
    # as it was before may have lost some.
    run = client.get_run(child.id)
    known, child.last_steps, child.status = child.last_steps, steps_of(run), run.info.status
    if child.is_behind(known):
        child.offset, child.mark = 0, ""
    child.resume(held)  # now that it is known how far the store is
    grown = child.mark == sent.mark(folder.metrics_file, child.offset)
    lines, offset = read_metrics(folder.metrics_file, child.offset if grown else 0)
    mark = sent.mark(folder.metrics_file, offset)  # now: the file may be cut back meanwhile
    found = shown.new_points(lines, child.last_steps, partial(_steps_there, client, child.id))
    log_points(client, uri, child.id, found.points)
    for point in found.points:
        child.last_steps[point.key] = max(point.step, child.last_steps.get(point.key, -1))
    child.offset, child.mark = offset, mark
    notes = []
    if new := {n: k for n, k in found.renamed.items() if k not in child.renamed}:
        child.renamed |= set(new.values())
        told = ", ".join(f"{name} is called {key}" for name, key in new.items())
        notes.append(f"{told} in MLflow, which does not take its characters")
    if odd := {key: step for key, step in found.odd.items() if key not in child.odd}:
        child.odd |= odd.keys()
        told = ", ".join(f"{key} at step {step}" for key, step in odd.items())
        notes.append(f"not finite: {told}")
    return notes


def _newest_step(folder: RunFolder) -> float:
    """The step of the last whole line of a run's metrics, which are not all read for it; infinite
    if it cannot be told so."""
    for line in reversed(last_lines(folder.metrics_file, 2)):
        with suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return math.inf


def _steps_there(client: MlflowClient, mlflow_id: str, key: str) -> set[int]:
    return {point.step for point in client.get_metric_history(mlflow_id, key)}


def send_files(
    client: MlflowClient, child: Child, files: Mapping[str, tuple[Path, list[int | str]]]
) -> None:
    for name, (file, stamp) in files.items():
        if child.files.get(name) != stamp:
            log_file(client, child.id, file, name)
            child.files = {**child.files, name: stamp}


def log_file(client: MlflowClient, mlflow_id: str, file: Path, name: str) -> None:
    """Send a file as an artifact of some name, whose last part is the file's or another."""
    place = str(Path(name).parent)
    with tempfile.TemporaryDirectory() as folder:
        if file.name != Path(name).name:
            file = Path(shutil.copy(file, Path(folder) / Path(name).name))
        client.log_artifact(mlflow_id, str(file), None if place == "." else place)


def steps_of(run: Any) -> dict[str, int]:
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def set_status(client: MlflowClient, child: Child, status: Status) -> None:
    wanted = _MLFLOW_STATUS[status.state]
    end = milliseconds(status.updated) if status.state in FINAL else None
    if child.status == wanted and end in (None, child.end_time):
        return
    set_state(client, child.id, wanted, end)
    child.status, child.end_time = wanted, end


def set_state(client: MlflowClient, mlflow_id: str, status: str, end: int | None) -> None:
    if end is None:
        client.update_run(mlflow_id, status=status)
    else:
        client.set_terminated(mlflow_id, status, end)
