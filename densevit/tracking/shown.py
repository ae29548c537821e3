"""What MLflow is shown of a run directory and of a sweep's folder; knows no store."""

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

from densevit.config import RunConfig, applies, is_execution
from densevit.errors import UserError
from densevit.metricsfile import number
from densevit.rundir import RunFolder, State, read_json, sweep_folder

if TYPE_CHECKING:
    from mlflow.entities import Metric

# MLflow's limits (mlflow.utils.validation).
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY = 6000, 8000, 250
_REFUSED = re.compile(r"[^/\w.\- :]")
NOTE, COMMIT = "mlflow.note.content", "mlflow.source.git.commit"
# By these a run of ours is known: its id, or a sweep's name; when that began; a run's sweeps.
RUN, SWEEP, BEGUN, SWEEPS = "densevit.run", "densevit.sweep", "densevit.begun", "densevit.sweeps"

_NO_NUMBERS = ("step", "epoch", "time")
_FILES = (
    "config.yaml", "identity.json", "provenance.json", "fingerprint.json", "attempts.json",
    "results.json", "log.txt",
)  # fmt: skip
_FOLDERS = ("predictions", "matches")
PICTURE = "matches/correspondences-"  # and the sweep's name: a run of two sweeps has two


@dataclass(frozen=True)
class Shelf:
    """What the sweep's folder says of the sweep: `runs` is what plan.json has of each run, `begun`
    when the sweep was first prepared there."""

    name: str
    folder: Path
    begun: str = ""
    description: str = ""
    git_sha: str | None = None
    axes: Sequence[str] = ()
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_shelf(outputs: Path, name: str) -> Shelf:
    """A sweep as its folder shows it; bare where there is no plan yet, or a damaged one."""
    folder = sweep_folder(outputs, name)
    try:
        record = read_json(folder / "plan.json") or {}
        runs = {
            run["id"]: {key: run.get(key) for key in ("label", "axes", "differs")}
            for run in record.get("runs", [])
        }
    except (UserError, KeyError, TypeError, AttributeError):
        return Shelf(name, folder)
    return Shelf(
        name, folder, str(record.get("begun") or ""), record.get("description") or "",
        record.get("git_sha"), record.get("axes") or (), runs,
    )  # fmt: skip


def shelf_stamp(outputs: Path, name: str) -> tuple[int, int]:
    """By which a plan is known to be as it was."""
    try:
        stat = (sweep_folder(outputs, name) / "plan.json").stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def shelf_tags(shelf: Shelf) -> dict[str, str]:
    """The tags of a sweep's parent run."""
    tags = {NOTE: shelf.description, COMMIT: shelf.git_sha or ""}
    tags["densevit.axes"] = ", ".join(shelf.axes)
    tags["densevit.runs"] = str(len(shelf.runs))
    tags[BEGUN] = shelf.begun
    return {key: value[:LONGEST_TAG] for key, value in tags.items() if value}


def shelf_files(shelf: Shelf) -> list[Path]:
    """What the parent run has as artifacts: the sweep's file, its plan and its report."""
    named = [shelf.folder / "sweep.yaml", shelf.folder / "plan.json"]
    report = sorted(file for file in (shelf.folder / "report").rglob("*") if _shown(file))
    return [file for file in named if file.is_file()] + report


def place(folder: RunFolder, shelf: Shelf) -> str:
    """A digest of what a sweep says of a run: a grid that grows by an axis says more."""
    told = json.dumps(shelf.runs.get(folder.path.name), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def run_name(folder: RunFolder, config: RunConfig, shelf: Shelf | None) -> str:
    """The cell in the words of the sweep's table, and the seed."""
    known = {} if shelf is None else shelf.runs.get(folder.path.name, {})
    label = known.get("label")
    return f"{label}, seed {config.seed}" if label else f"{config.cl_mode}, seed {config.seed}"


def run_params(config: RunConfig) -> tuple[dict[str, str], list[str]]:
    """Every field that means something for the run, also at its default; and what was cut."""
    params = {
        name: _text(value)
        for name, value in config
        if not is_execution(name) and applies(name, config)
    }
    long = [name for name, value in params.items() if len(value) > LONGEST_PARAM]
    for name in long:
        params[name] = params[name][: LONGEST_PARAM - 1] + "…"
    told = f"longer than the {LONGEST_PARAM} characters that MLflow takes, and cut there"
    return params, [f"{', '.join(long)}: {told} (config.yaml has it whole)"] if long else []


def run_tags(folder: RunFolder, config: RunConfig, shelf: Shelf | None) -> dict[str, str]:
    """The cell and its place in the sweep, and how the run is executed: unlike a parameter, that
    may change when it is started again."""
    tags = {
        f"densevit.{name}": _text(value)
        for name, value in config
        if is_execution(name) and value is not None
    }
    tags["densevit.cell"] = (read_json(folder.identity_file) or {}).get("cell", "")
    tags |= _started_tags(folder)
    known = {} if shelf is None else shelf.runs.get(folder.path.name, {})
    tags |= {str(axis): _text(value) for axis, value in (known.get("axes") or {}).items()}
    if known.get("differs"):
        tags[NOTE] = f"What differs from the baseline of {shelf.name}: {known['differs']}."
    return {key: value[:LONGEST_TAG] for key, value in tags.items() if value}


def _started_tags(folder: RunFolder) -> dict[str, str]:
    """Where and by what the run was started last, and how often."""
    starts = (read_json(folder.provenance_file) or {}).get("starts") or [{}]
    last = starts[-1]
    told = {
        "densevit.host": last.get("host"),
        "densevit.launcher": last.get("launcher"),
        "densevit.job": last.get("job"),
        "densevit.restarts": len(starts) - 1,
        "mlflow.source.name": last.get("command"),
        COMMIT: last.get("git_sha"),
    }
    return {key: _text(value) for key, value in told.items() if value is not None}


def run_files(folder: RunFolder, state: State, shelf: Shelf | None) -> dict[str, Path]:
    """The artifacts of a run by their names: what it is at any time, and what came of it when it
    has ended; a picture of its correspondences once a report has made one."""
    if state in ("pending", "running"):
        named = [folder.config_file, folder.provenance_file]
    else:
        named = [folder.path / name for name in _FILES]
        named += sorted(file for name in _FOLDERS for file in (folder.path / name).glob("*"))
    found = {str(file.relative_to(folder.path)): file for file in named if _shown(file)}
    if shelf is not None:
        picture = shelf.folder / "report" / f"matches-{folder.path.name}.png"
        found |= {f"{PICTURE}{shelf.name}.png": picture} if picture.is_file() else {}
    return found


def _shown(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".")


@dataclass
class Points:
    """The numbers of some lines: `odd` names those that are not finite, with their first step,
    `renamed` those whose names MLflow does not take."""

    points: list[Metric] = field(default_factory=list)
    odd: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)


def new_points(
    lines: Sequence[Mapping[str, Any]],
    last_steps: Mapping[str, int],
    steps_of: Callable[[str], Collection[int]],
) -> Points:
    """The numbers of some lines, without the steps that were sent before, each step once a name.

    `steps_of` gives all steps that the store has of a metric. It is asked of those metrics of which
    a line is not beyond the last step there: a run that was resumed may log others than before.
    """
    from mlflow.entities import Metric

    newest, found, known = {}, Points(), cache(steps_of)
    for line in lines:
        step, time = int(line["step"]), milliseconds(line["time"])
        for name, written in line.items():
            value = number(written)
            if value is None or name in _NO_NUMBERS:
                continue
            key = metric_key(name)
            if step <= newest.get(key, -1):
                continue
            newest[key] = step
            if step <= last_steps.get(key, -1) and step in known(key):
                continue
            found.points.append(Metric(key, value, time, step))
            if key != name:
                found.renamed[name] = key
            if not math.isfinite(value):
                found.odd.setdefault(key, step)
    return found


@lru_cache(maxsize=4096)
def metric_key(name: str) -> str:
    """A metric's name as MLflow takes it: the same if it can be; else still one for each name."""
    key = _REFUSED.sub("_", name)
    # No name that would be another one if it were a path.
    key = "/".join(part if part.strip(". ") else "_" for part in key.split("/"))
    key = re.sub(r"^\.\.", "__", key)
    if key == name and len(key) <= LONGEST_KEY:
        return name
    mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{key[: LONGEST_KEY - 7]}-{mark}"


def milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def first_start(folder: RunFolder) -> float:
    """When a run was started for the first time, in Unix seconds. Errors: `UserError`: damaged."""
    try:
        return float((read_json(folder.provenance_file) or {})["starts"][0]["time"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        told = f"{folder.provenance_file}: is not as it should be: {error!r}"
        raise UserError(told) from None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="replace").decode()  # a path may hold what no database takes
