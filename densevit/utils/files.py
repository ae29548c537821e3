"""Read and write files atomically: readers see the old content or the new one."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from densevit.utils.errors import UserError


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if the file does not exist.

    Errors: `UserError` if the file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: cannot be read: it holds no JSON object")
    return record


def write_json(path: Path, data: Mapping[str, Any], *, private: bool = False) -> None:
    """Write a JSON object atomically; a `private` one can be read by its owner alone."""
    write_atomic(path, json.dumps(data, indent=1) + "\n", private=private)


def write_atomic(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write a file atomically; a `private` one can be read by its owner alone."""
    with replacing(path, private=private) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside `path` that replaces it when the block succeeds."""
    with temporary_beside(path) as temporary:
        yield temporary
        put(temporary, path, private=private)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield an empty file in the folder of `path`; it is removed at the end if still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def put(temporary: Path, path: Path, *, private: bool = False) -> None:
    """Rename a finished file to `path`, after fsync: no reader sees half a file."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    if not private:  # as mkstemp made it; results are for the group
        temporary.chmod(0o666 & ~UMASK)
    temporary.replace(path)
    sync_folder(path.parent)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


# Read once at import: reading the umask changes it, which is not thread-safe.
UMASK = _umask()


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log without color codes; a progress bar gives its last state."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = without_colors(text).split("\n")
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
    return [line for line in lines if line][-count:]


def without_colors(text: str) -> str:
    """Return the text of a log without color codes and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
