"""Frozen numbers: a sweep's results as written down for a paper, to detect later changes.

A frozen file holds the numbers of every cell, and hashes of every run's results, which show the run
that has changed a number. A hash over the file itself shows that nobody has edited it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from typing_extensions import TypedDict

from densevit.config.run_config import NAME_PATTERN
from densevit.results.collect.cells import over_seeds
from densevit.runs.directory import run_folder
from densevit.runs.record_file import CHECKED, Count, RecordKind, checked
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError, nearest
from densevit.utils.files import read_json, write_json

FORMAT = 1
LONGEST = 100  # characters of a name
SAME = 1e-9  # relative tolerance: sums in another order differ by less
SHA = 10  # characters of a commit hash to print
Key = tuple[str, str, str]  # cell, benchmark, metric


class Number(NamedTuple):
    """A cell's metric over seeds; an undefined value, such as the std of one seed, is NaN."""

    mean: float
    std: float
    n: int


@CHECKED
class FrozenNumber(TypedDict):
    """A number of a frozen file; NaN is null there."""

    cell: str
    label: str
    benchmark: str
    metric: str
    mean: float | None
    std: float | None
    n: Count


@CHECKED
class FrozenRun(TypedDict):
    cell: str
    seed: int
    git_sha: str | None
    hashes: dict[str, str]


@CHECKED
class FrozenRecord(TypedDict):
    """A frozen file; see `freeze`."""

    frozen: str
    numbers: list[FrozenNumber]
    runs: dict[str, FrozenRun]


_FROZEN = RecordKind(FrozenRecord, "restore it from a copy, or remove it")


def freeze(plan: Plan, frame: pd.DataFrame, name: str) -> Path:
    """Write the numbers of a sweep to `plan.folder`/frozen/<name>.json and return the file.

    It holds mean, std and n of each cell, benchmark and metric; for each run its id, cell, seed,
    commit and a hash of its numbers on each benchmark; the date; and a SHA-256 over all of that.
    Errors: `UserError` if the name is invalid or taken, or if there are no results.
    """
    file = _file(plan, name)
    if file.exists():
        raise UserError(f"--freeze {name}: {file} exists; choose another name")
    if frame.empty:
        raise UserError(f"--freeze {name}: no run of {plan.name} has results yet")
    labels = {run.cell: plan.label(run) for run in plan.grid.cells}
    record = {
        "format": FORMAT,
        "sweep": plan.name,
        "name": name,
        "frozen": datetime.now(UTC).isoformat(timespec="seconds"),
        "numbers": [
            {
                "cell": cell, "label": labels.get(cell, cell), "benchmark": benchmark,
                "metric": metric, "mean": _json_number(number.mean),
                "std": _json_number(number.std), "n": number.n,
            }
            for (cell, benchmark, metric), number in cell_numbers(frame).items()
        ],
        "runs": {
            run: {"cell": cell, "seed": seed, "git_sha": last_commit(plan, run), "hashes": hashes}
            for run, (cell, seed, hashes) in run_hashes(frame).items()
        },
    }  # fmt: skip
    write_json(file, record | {"sha256": _hash(record)})
    return file


def frozen(plan: Plan) -> list[str]:
    """Return the names under which numbers of the sweep were frozen, the oldest first."""
    files = (plan.folder / "frozen").glob("*.json")
    return [file.stem for file in sorted(files, key=lambda f: (f.stat().st_mtime, f.name))]


def read(plan: Plan, name: str) -> FrozenRecord:
    """Return the record frozen under a name, after checking its hash.

    Errors: `UserError` if there is no such file, or if it is damaged or was edited.
    """
    file = _file(plan, name)
    content = read_json(file)
    if content is None:
        raise UserError(f"{file}: no such file; {nearest(name, frozen(plan))}")
    if content.pop("sha256", None) != _hash(content):
        raise UserError(f"{file}: was edited: its content does not match its sha256")
    if content.get("format") != FORMAT:
        raise UserError(f"{file}: has format {content.get('format')}; this version reads {FORMAT}")
    return checked(file, content, _FROZEN)


def cell_numbers(frame: pd.DataFrame) -> dict[Key, Number]:
    """Return mean, std and n over seeds by cell, benchmark and metric."""
    table = over_seeds(frame).itertuples(name=None)
    return {key: Number(float(mean), float(std), int(n)) for key, mean, std, n in table}


def run_hashes(frame: pd.DataFrame) -> dict[str, tuple[str, int, dict[str, str]]]:
    """Map each run to its cell, seed and, by benchmark, the hash of its numbers and image count."""
    by_benchmark: dict[tuple[str, str, int, str], list[list[Any]]] = {}
    columns = [frame[name] for name in ("run", "cell", "seed", "benchmark", "metric", "value", "n")]
    for run, cell, seed, benchmark, metric, value, n in zip(*columns, strict=True):
        numbers = by_benchmark.setdefault((run, cell, int(seed), benchmark), [])
        numbers.append([metric, repr(float(value)), int(n)])
    found: dict[str, tuple[str, int, dict[str, str]]] = {}
    for (run, cell, seed, benchmark), numbers in by_benchmark.items():
        text = json.dumps(sorted(numbers))
        hashes = found.setdefault(run, (cell, seed, {}))[2]
        hashes[benchmark] = hashlib.sha256(text.encode()).hexdigest()
    return found


def last_commit(plan: Plan, run: str) -> str | None:
    """Return the commit of a run's last start; None if it is unknown."""
    try:
        record = run_folder(plan.outputs, run).provenance()
    except UserError:
        return None
    return record["starts"][-1].get("git_sha") if record and record["starts"] else None


def short_commit(commit: str | None) -> str:
    return commit[:SHA] if commit else "unknown"


def key_of(row: Mapping[str, Any]) -> Key:
    return row["cell"], row["benchmark"], row["metric"]


def number_of(row: Mapping[str, Any]) -> Number:
    mean, std = (math.nan if row[k] is None else float(row[k]) for k in ("mean", "std"))
    return Number(mean, std, row["n"])


def _json_number(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _file(plan: Plan, name: str) -> Path:
    """Return the file of a name. Errors: `UserError` if it is no valid file name."""
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > LONGEST:
        raise UserError(
            f"--freeze {name!r}: must be a name of letters, digits, '.', '_' and '-', "
            f"at most {LONGEST} long"
        )
    return plan.folder / "frozen" / f"{name}.json"


def _hash(record: Mapping[str, Any]) -> str:
    """Return a hash of the content, independent of key order and white space in the file."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
