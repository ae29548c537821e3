"""The checkpoint files of a run: their names. Imports no torch.

A file's name holds its step and the SHA-256 of its content, `step-00001200-5d41402abc4b2a76.pt`, so
that no second file is needed to verify it.
"""

from __future__ import annotations

import hashlib
import re
from io import BufferedIOBase
from pathlib import Path

_DIGITS = 16  # of the digest: 64 bits detect a damaged file as surely as all 256
_NAME = re.compile(rf"step-(\d+)-([0-9a-f]{{{_DIGITS}}})\.pt")


def checkpoint_name(step: int, digest: str) -> str:
    """Return the file name of a checkpoint; `digest` is `content_digest` of the file."""
    return f"step-{step:08d}-{digest}.pt"


def digest_in_name(path: Path) -> str | None:
    """Return the digest in the name of a checkpoint; None if the file has another name."""
    found = _NAME.fullmatch(path.name)
    return found[2] if found else None


def is_checkpoint(path: Path) -> bool:
    """Return True if a file has the name of a checkpoint."""
    return digest_in_name(path) is not None


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, newest first, intact or not."""
    names = {path: _NAME.fullmatch(path.name) for path in folder.glob("step-*.pt")}
    steps = {path: int(name[1]) for path, name in names.items() if name is not None}
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def content_digest(file: BufferedIOBase) -> str:
    """Return the beginning of the SHA-256 of a file's content."""
    return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
