"""MLflow's fields (tags, parameters, metrics, artifacts) of runs and sweeps; accesses no store."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.config.loss_modes import applies
from densevit.config.run_config import FIELDS, RunConfig, is_execution
from densevit.runs.directory import RunFolder, sweep_folder
from densevit.runs.metrics_file import number
from densevit.runs.records import PROVENANCE, Start
from densevit.runs.status import State
from densevit.sweep.stored_plan import read_stored_plan
from densevit.utils.errors import UserError
from densevit.utils.escape import markdown_paragraph, visible

if TYPE_CHECKING:
    from mlflow.entities import Metric

# MLflow's limits (mlflow.utils.validation).
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY = 6000, 8000, 250
_NOT_ACCEPTED = re.compile(r"[^/\w.\- :]")
NOTE, COMMIT = "mlflow.note.content", "mlflow.source.git.commit"
# Tags that identify our runs: run id, or sweep name; when it began; the sweeps of a run.
RUN, SWEEP, BEGUN, SWEEPS = "densevit.run", "densevit.sweep", "densevit.begun", "densevit.sweeps"

_NOT_METRICS = ("step", "epoch", "time")
_FILES = (
    "config.yaml", "identity.json", "provenance.json", "fingerprint.json", "attempts.json",
    "results.json", "log.txt",
)  # fmt: skip
_FOLDERS = ("predictions", "matches")
MATCHES = "matches/correspondences-"  # + the sweep's name: a run of two sweeps has two


@dataclass(frozen=True)
class SweepInfo:
    """A sweep's folder; `runs`: each run's entry in plan.json; `begun`: when first prepared."""

    name: str
    folder: Path
    begun: str = ""
    description: str = ""
    git_sha: str | None = None
    axes: Sequence[str] = ()
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_sweep_info(outputs: Path, name: str) -> SweepInfo:
    """Read a sweep's folder; without a plan, or with a damaged one, return its name only."""
    folder = sweep_folder(outputs, name)
    try:
        record = read_stored_plan(folder) or {}
    except UserError:
        return SweepInfo(name, folder)
    names = ("label", "axes", "differs")
    runs = {run["id"]: {k: run.get(k) for k in names} for run in record.get("runs", [])}
    return SweepInfo(
        name, folder, str(record.get("begun") or ""), record.get("description") or "",
        record.get("git_sha"), record.get("axes") or (), runs,
    )  # fmt: skip


def sweep_stamp(outputs: Path, name: str) -> tuple[int, int]:
    """Return the size and modification time of a plan, which show whether it has changed."""
    try:
        stat = (sweep_folder(outputs, name) / "plan.json").stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def sweep_tags(sweep_info: SweepInfo) -> dict[str, str]:
    """Return the tags of a sweep's parent run."""
    tags = {NOTE: markdown_paragraph(sweep_info.description), COMMIT: sweep_info.git_sha or ""}
    tags["densevit.axes"] = ", ".join(sweep_info.axes)
    tags["densevit.runs"] = str(len(sweep_info.runs))
    tags[BEGUN] = sweep_info.begun
    return _accepted(tags)


def sweep_files(sweep_info: SweepInfo) -> list[Path]:
    """Return the artifacts of the parent run: the sweep file, its plan and its report."""
    named = [sweep_info.folder / "sweep.yaml", sweep_info.folder / "plan.json"]
    report = sorted(
        file for file in (sweep_info.folder / "report").rglob("*") if _is_artifact(file)
    )
    return [file for file in named if file.is_file()] + report


def plan_entry_digest(folder: RunFolder, sweep_info: SweepInfo) -> str:
    """Return a digest of a run's entry in a sweep, which changes if the grid gains an axis."""
    entry = json.dumps(sweep_info.runs.get(folder.path.name), sort_keys=True)
    return hashlib.sha256(entry.encode()).hexdigest()[:16]


def run_name(folder: RunFolder, config: RunConfig, sweep_info: SweepInfo | None) -> str:
    """Return the label of the cell in the sweep's table, and the seed."""
    entry = {} if sweep_info is None else sweep_info.runs.get(folder.path.name, {})
    label = entry.get("label")
    return f"{visible(label or config.cl_mode)}, seed {config.seed}"


def run_params(config: RunConfig) -> tuple[dict[str, str], list[str]]:
    """Return every science field that applies, also at its default; and a note on cut values."""
    params = {
        name: _text(value)
        for name, value in config
        if not is_execution(name) and applies(name, config)
    }
    long = [name for name, value in params.items() if len(value) > LONGEST_PARAM]
    for name in long:
        params[name] = params[name][: LONGEST_PARAM - 1] + "…"
    note = f"cut to MLflow's limit of {LONGEST_PARAM} characters"
    return params, [f"{', '.join(long)}: {note} (config.yaml has the whole value)"] if long else []


def run_tags(folder: RunFolder, config: RunConfig, sweep_info: SweepInfo | None) -> dict[str, str]:
    """Return the tags of a run: its cell, its place in the sweep, and its execution fields.

    Unlike parameters, tags may change when the run is started again.
    """
    tags = {
        f"densevit.{name}": _text(value)
        for name, value in config.model_dump().items()
        if is_execution(name) and value is not None
    }
    ids = folder.identity_record()
    tags["densevit.cell"] = ids["cell"] if ids else ""
    tags |= _started_tags(folder)
    if sweep_info is not None:
        entry = sweep_info.runs.get(folder.path.name, {})
        axes = entry.get("axes") or {}
        tags |= {axis: _text(value) for axis, value in axes.items() if axis in FIELDS}
        if entry.get("differs"):
            note = f"Difference from the baseline of {sweep_info.name}: {entry['differs']}."
            tags[NOTE] = markdown_paragraph(note)
    return _accepted(tags)


def _accepted(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that are not empty, cut to MLflow's limit."""
    return {key: visible(value)[:LONGEST_TAG] for key, value in tags.items() if value}


def _started_tags(folder: RunFolder) -> dict[str, str]:
    """Return the tags of the last start (host, launcher, ...) and the number of restarts."""
    record = folder.provenance()
    starts: Sequence[Start] = (record["starts"] if record else []) or [{}]
    last = starts[-1]
    tags = {
        "densevit.host": last.get("host"),
        "densevit.launcher": last.get("launcher"),
        "densevit.job": last.get("job"),
        "densevit.restarts": len(starts) - 1,
        "mlflow.source.name": last.get("command"),
        COMMIT: last.get("git_sha"),
    }
    return {key: _text(value) for key, value in tags.items() if value is not None}


def run_files(folder: RunFolder, state: State, sweep_info: SweepInfo | None) -> dict[str, Path]:
    """Return a run's artifacts by name: config, results at the end, image of correspondences."""
    if state in ("pending", "running"):
        files = [folder.config_file, folder.provenance_file]
    else:
        files = [folder.path / name for name in _FILES]
        files += sorted(file for name in _FOLDERS for file in (folder.path / name).glob("*"))
    found = {str(file.relative_to(folder.path)): file for file in files if _is_artifact(file)}
    if sweep_info is not None:
        image = sweep_info.folder / "report" / f"matches-{folder.path.name}.png"
        found |= {f"{MATCHES}{sweep_info.name}.png": image} if image.is_file() else {}
    return found


def _is_artifact(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".")


@dataclass
class Points:
    """The metrics of some lines.

    `not_finite`: the first step of each one that is not finite; `renamed`: the new names of those
    that MLflow does not accept.
    """

    points: list[Metric] = field(default_factory=list)
    not_finite: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)


def new_points(
    lines: Sequence[Mapping[str, Any]],
    last_steps: Mapping[str, int],
    steps_of: Callable[[str], Collection[int]],
) -> Points:
    """Return the metrics of some lines without the steps sent before, each step once per metric.

    `steps_of` returns all steps that the store has of a metric. It is called only if a line is not
    beyond the metric's last step there: a resumed run may log other steps than before.
    """
    from mlflow.entities import Metric

    newest: dict[str, int] = {}
    found, stored_steps = Points(), cache(steps_of)
    for line in lines:
        step, time = int(line["step"]), milliseconds(line["time"])
        for name, written in line.items():
            value = number(written)
            if value is None or name in _NOT_METRICS:
                continue
            key = metric_key(name)
            if step <= newest.get(key, -1):
                continue
            newest[key] = step
            if step <= last_steps.get(key, -1) and step in stored_steps(key):
                continue
            found.points.append(Metric(key, value, time, step))
            if key != name:
                found.renamed[name] = key
            if not math.isfinite(value):
                found.not_finite.setdefault(key, step)
    return found


@lru_cache(maxsize=4096)
def metric_key(name: str) -> str:
    """Return a metric name that MLflow accepts: unchanged if possible, else unique per name."""
    key = _NOT_ACCEPTED.sub("_", name)
    # No part that has a meaning in a path, as . and .. have.
    key = "/".join(part if part.strip(". ") else "_" for part in key.split("/"))
    key = re.sub(r"^\.\.", "__", key)
    if key == name and len(key) <= LONGEST_KEY:
        return name
    mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{key[: LONGEST_KEY - 7]}-{mark}"


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def first_start(folder: RunFolder) -> float:
    """Return when a run was first started, in Unix seconds. Errors: `UserError` if damaged."""
    record = folder.provenance()
    if not record or not record["starts"] or "time" not in record["starts"][0]:
        text = f"{folder.provenance_file}: holds no time of a first start; {PROVENANCE.remedy}"
        raise UserError(text)
    return record["starts"][0]["time"]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return visible(text)  # a path may hold bytes that no database accepts
