"""A copy of the package's code, so that jobs run the code as it was at submission.

outputs/code/DIGEST/densevit/ is named by its content: five hundred jobs share one copy, and editing
the working tree while they wait changes nothing. snapshot.json beside it records the commit and the
differences from it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from densevit.runs.provenance import git_state
from densevit.utils.files import write_json

PACKAGE = Path(__file__).resolve().parent.parent
DIGEST_LENGTH = 16


def take(outputs: Path) -> Path:
    """Return the folder to put on PYTHONPATH for the current code; create it if it is missing."""
    files = _files(PACKAGE)
    target = outputs / "code" / _digest(files)
    if _whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft.", dir=target.parent))
    try:
        for name, content in files.items():
            copy = draft / PACKAGE.name / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            copy.chmod(0o444)  # its name is its digest; __pycache__ may be written beside it
        write_json(draft / "snapshot.json", {"digest": target.name, **git_state()})
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:
            if not _whole(target):  # half removed, not completed by another process
                target.rename(draft.with_name(f"{draft.name}.damaged"))
                draft.rename(target)
    finally:
        for left in (draft, draft.with_name(f"{draft.name}.damaged")):
            shutil.rmtree(left, ignore_errors=True)
    return target


def _whole(copy: Path) -> bool:
    """Check that a copy still matches its digest: a cleanup may have removed single files."""
    return (copy / "snapshot.json").exists() and _digest(_files(copy / PACKAGE.name)) == copy.name


def _files(package: Path) -> dict[str, bytes]:
    """Return the content of every file of the package by its name, sorted."""
    names = sorted(
        os.path.relpath(Path(folder) / file, package)
        for folder, _, files in os.walk(package)
        for file in files
        if "__pycache__" not in folder and not file.startswith(".")
    )
    return {name: (package / name).read_bytes() for name in names}


def _digest(files: dict[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name, content in files.items():
        whole.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return whole.hexdigest()[:DIGEST_LENGTH]
