"""The record of what a mirror has sent: `tracking.json` of a run and of a sweep's folder.

It saves repeated queries and sending, and tells whether there is anything to do. The store is
queried where it matters.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from densevit.runs.directory import RunFolder
from densevit.runs.status import State
from densevit.tracking import mlflow_fields
from densevit.tracking.mlflow_fields import SweepInfo
from densevit.utils.errors import UserError
from densevit.utils.files import read_json


def read_record(folder: RunFolder, store: str) -> dict[str, Any]:
    """Return the record of a run for this store; empty if missing or unreadable."""
    return _read(folder.tracking_file, store)


def parent_file(sweep_info: SweepInfo) -> Path:
    return sweep_info.folder / "tracking.json"


def read_parent_record(sweep_info: SweepInfo, store: str) -> dict[str, Any]:
    """Return the record of a sweep's parent run; as `read_record`."""
    return _read(parent_file(sweep_info), store)


def _read(file: Path, store: str) -> dict[str, Any]:
    try:
        record = read_json(file)
    except UserError:
        return {}
    if record is None or record.get("store") != store:
        return {}
    return {key: value for key, value in record.items() if _is_valid(key, value)}


# A value of another type is damaged, and is ignored.
_TYPES: dict[str, type] = {
    "mlflow_run_id": str, "experiment_id": str, "status": str, "state": str, "offset": int,
    "mark": str, "last_steps": dict, "files": dict, "sweeps": dict, "model": str,
    "renamed": list, "odd": list,
}  # fmt: skip


def _is_valid(key: str, value: Any) -> bool:
    if key == "last_steps" and isinstance(value, dict):
        return all(isinstance(step, int) for step in value.values())
    if key == "sweeps" and isinstance(value, dict):
        return all(isinstance(digest, str) for digest in value.values())
    if key in ("renamed", "odd") and isinstance(value, list):
        return all(isinstance(name, str) for name in value)
    if key == "offset":
        return isinstance(value, int) and 0 <= value < 2**63
    return isinstance(value, _TYPES.get(key, object))


def parent_files(sweep_info: SweepInfo) -> dict[str, str]:
    """Return a sweep's artifacts by name, with a digest: a report may be rewritten unchanged."""
    return {
        str(file.relative_to(sweep_info.folder)): digest(file)
        for file in mlflow_fields.sweep_files(sweep_info)
    }


def file_stamps(
    folder: RunFolder, state: State, sweep_info: SweepInfo | None
) -> dict[str, tuple[Path, list[int | str]]]:
    """Return a run's artifacts by name, with size and mtime in ns; for redrawn images a digest."""
    found: dict[str, tuple[Path, list[int | str]]] = {}
    for name, file in mlflow_fields.run_files(folder, state, sweep_info).items():
        stat = file.stat()
        version = digest(file) if name.startswith(mlflow_fields.MATCHES) else stat.st_mtime_ns
        found[name] = file, [stat.st_size, version]
    return found


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def last_start(folder: RunFolder) -> int:
    """Return when the run's provenance, and so its tags, last changed: at its last start."""
    return _changed(folder.provenance_file)


def last_changes(folder: RunFolder) -> tuple[int, int]:
    """Return when status and metrics last changed: equal values mean an ended run is unchanged."""
    return _changed(folder.status_file), _changed(folder.metrics_file)


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # the error is reported where the file is read
        return 0


def tail_digest(path: Path, offset: int) -> str:
    """Return a digest of the bytes before an offset; it changes if the file is cut before it."""
    length = min(offset, 256)
    if length == 0 or not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(offset - length)
        return hashlib.sha256(file.read(length)).hexdigest()[:16]
