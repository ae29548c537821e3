"""A copy of the package's code, so that jobs run the code as it was at submission.

outputs/code/DIGEST/densevit/ is named by its content: five hundred jobs share one copy, and editing
the working tree while they wait changes nothing. snapshot.json beside it records the commit and the
differences from it. A copy is for its owner alone: it may hold what nobody else is meant to read,
and a job runs it. Where outputs are shared, another user's copy of the same code is left alone, and
ours is DIGEST-UID.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from densevit.launch.code_files import all_files, code_files
from densevit.runs.provenance import NOT_RECORDED, git_state
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json

PACKAGE = Path(__file__).resolve().parent.parent
DIGEST_LENGTH = 16


def take(outputs: Path, *, diff: bool = True) -> Path:
    """Return the folder to put on PYTHONPATH for the current code; create it if it is missing.

    With `diff`, its record holds the differences from the commit. Errors: `UserError`.
    """
    files = _content(PACKAGE, code_files(PACKAGE).copied)
    digest = _digest(files)
    target = _place(outputs / "code", digest)
    if _whole(target):
        target.chmod(0o700)  # it may be of an earlier version
        _record(target, digest, diff)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft.", dir=target.parent))  # 0700
    try:
        for name, content in files.items():
            copy = draft / PACKAGE.name / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            copy.chmod(0o400)  # its name is its digest; __pycache__ may be written beside it
        for folder, _, _ in os.walk(draft):
            Path(folder).chmod(0o700)
        _record(draft, digest, diff)
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


def _place(folder: Path, digest: str) -> Path:
    """Return where our copy of some code is or will be; what another user made is never run."""
    for place in (folder / digest, folder / f"{digest}-{os.getuid()}"):
        if not os.path.lexists(place) or place.lstat().st_uid == os.getuid():
            return place
    raise UserError(f"{place}: belongs to another user; remove it, or use other outputs")


def _record(copy: Path, digest: str, diff: bool) -> None:
    """Write the record of a copy, unless it has what is wanted."""
    file = copy / "snapshot.json"
    known = read_json(file)
    if known is None or (diff and known["git_diff"] == NOT_RECORDED):
        write_json(file, {"digest": digest, **git_state(diff=diff)}, private=True)


def _whole(copy: Path) -> bool:
    """Check that a copy still matches its digest: a cleanup may have removed single files."""
    if copy.is_symlink() or not (copy / "snapshot.json").exists():
        return False
    package = copy / PACKAGE.name
    return _digest(_content(package, all_files(package))) == copy.name.partition("-")[0]


def _content(package: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (package / name).read_bytes() for name in names}


def _digest(files: dict[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name, content in files.items():
        whole.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return whole.hexdigest()[:DIGEST_LENGTH]
