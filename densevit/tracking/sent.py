"""What a mirror remembers of what it has sent: `tracking.json` of a run and of a sweep's folder.

It saves asking and sending again, and tells whether there is anything to do. The store is asked
where it matters.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from densevit.errors import UserError
from densevit.rundir import RunFolder, State, read_json
from densevit.tracking import shown
from densevit.tracking.shown import Shelf


def remembered(folder: RunFolder, store: str) -> dict[str, Any]:
    """What a mirror wrote down about a run for this store; empty if nothing or unreadable."""
    return _remembered(folder.tracking_file, store)


def parent_record(shelf: Shelf) -> Path:
    return shelf.folder / "tracking.json"


def parent_lock(shelf: Shelf) -> Path:
    return shelf.folder / "tracking.lock"


def remembered_parent(shelf: Shelf, store: str) -> dict[str, Any]:
    """The same about a sweep's parent run."""
    return _remembered(parent_record(shelf), store)


def _remembered(file: Path, store: str) -> dict[str, Any]:
    try:
        record = read_json(file)
    except UserError:
        return {}
    if not isinstance(record, dict) or record.get("store") != store:
        return {}
    return {key: value for key, value in record.items() if _is_sound(key, value)}


# What is not of its kind is damaged, and as good as not there.
_KINDS: dict[str, type] = {
    "mlflow_run_id": str, "experiment_id": str, "status": str, "state": str, "offset": int,
    "mark": str, "last_steps": dict, "files": dict, "sweeps": dict, "model": str,
    "renamed": list, "odd": list,
}  # fmt: skip


def _is_sound(key: str, value: Any) -> bool:
    if key == "last_steps" and isinstance(value, dict):
        return all(isinstance(step, int) for step in value.values())
    if key in ("renamed", "odd") and isinstance(value, list):
        return all(isinstance(name, str) for name in value)
    return isinstance(value, _KINDS.get(key, object))


def parent_files(shelf: Shelf) -> dict[str, str]:
    """The artifacts of a sweep, by their name and a digest: a report that is written again is the
    same report."""
    return {str(file.relative_to(shelf.folder)): digest(file) for file in shown.shelf_files(shelf)}


def file_stamps(
    folder: RunFolder, state: State, shelf: Shelf | None
) -> dict[str, tuple[Path, list[int | str]]]:
    """The artifacts of a run by name, each with its size and time of change in nanoseconds; of a
    picture, which each report makes again, a digest."""
    found: dict[str, tuple[Path, list[int | str]]] = {}
    for name, file in shown.run_files(folder, state, shelf).items():
        stat = file.stat()
        mark = digest(file) if name.startswith(shown.PICTURE) else stat.st_mtime_ns
        found[name] = file, [stat.st_size, mark]
    return found


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def started_last(folder: RunFolder) -> int:
    """When the run was started last, as its provenance tells it: what its tags follow from."""
    return _changed(folder.provenance_file)


def settled(folder: RunFolder) -> tuple[int, int]:
    """By which a run that has ended is known to be as it was."""
    return _changed(folder.status_file), _changed(folder.metrics_file)


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # what is wrong is told where the file is read
        return 0


def mark(path: Path, offset: int) -> str:
    """A fingerprint of the bytes before an offset; it changes when the file was cut before it."""
    length = min(offset, 256)
    if length == 0 or not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(offset - length)
        return hashlib.sha256(file.read(length)).hexdigest()[:16]
