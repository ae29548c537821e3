"""Which files of the package are copied for jobs: what git tracks, and new Python files.

A working tree also holds what nobody meant to copy: keys, notes, data. New Python files may be code
that somebody is just writing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densevit.runs.provenance import git_output
from densevit.utils.console import count
from densevit.utils.leaks import reasons, secrets_in_diff

# The kinds of files that the package consists of, for a copy of it that git does not track.
PACKAGED = (".py", ".csv", ".j2", ".css", ".js")
_LISTED = 5


@dataclass(frozen=True)
class CodeFiles:
    """The files of a package, by their path in it: those that are `copied`, those among them that
    are `new`, as git does not track them, and those that are `left` behind."""

    copied: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]


def code_files(package: Path) -> CodeFiles:
    """Return which files of a package are copied."""
    tracked = _listed(package)
    if not tracked:  # an installed package, or a copy of one
        there = all_files(package)
        ours = tuple(name for name in there if name.endswith(PACKAGED))
        return CodeFiles(ours, (), tuple(name for name in there if name not in ours))
    others = _listed(package, "--others", "--exclude-standard")
    new = {name for name in others if name.endswith(".py")}
    ignored = _listed(package, "--others", "--ignored", "--exclude-standard", "--", "*.py")
    left = (others - new) | ignored
    return CodeFiles(*(tuple(sorted(names)) for names in (tracked | new, new, left)))


def all_files(package: Path) -> tuple[str, ...]:
    """Return every file of a package but hidden and compiled ones, sorted."""
    found = (file.relative_to(package) for file in package.rglob("*") if file.is_file())
    return tuple(sorted(str(name) for name in found if _visible(name)))


def _listed(package: Path, *options: str) -> set[str]:
    listed = git_output(package, "ls-files", "-z", *options) or ""
    names = (name for name in listed.split("\0") if name and (package / name).is_file())
    return {name for name in names if _visible(Path(name))}


def _visible(name: Path) -> bool:
    return not name.name.startswith(".") and "__pycache__" not in name.parts


def remarks(package: Path, diff: str | None) -> list[str]:
    """Return lines about what is copied of a package unasked, or may be missed, or looks like a
    secret; `diff` is what will be recorded of the working tree."""
    files, lines = code_files(package), []
    if files.new:
        lines.append(f"the copy of the code has {_names(files.new)}, which git does not track")
    if files.left:
        lines.append(
            f"not copied, as git does not track it: {_names(files.left)}; `git add` what jobs need"
        )
    secrets = [
        reason
        for name in files.copied
        for reason in reasons(name, (package / name).read_text(errors="replace"))
    ]
    if secrets:
        lines.append(
            f"the copy of the code, which you alone can read, holds what looks like a secret: "
            f"{', '.join(secrets)}"
        )
    recorded = secrets_in_diff(diff or "")
    if recorded:
        lines.append(
            f"the recorded git diff holds what looks like a secret: {', '.join(recorded)}; "
            f"git_diff: false keeps it out"
        )
    return lines


def _names(names: tuple[str, ...]) -> str:
    more = [count(len(names) - _LISTED, "more file")] if len(names) > _LISTED else []
    return ", ".join([*names[:_LISTED], *more])
