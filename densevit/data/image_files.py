"""Which files are images of a data set, and the one walk that lists them.

Folders, archives, checks and `densevit data prepare` follow these rules. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from densevit.utils.errors import UserError

UNLABELLED = ("unlabelled",)  # the only class of images without labels
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".jp2", ".j2k", ".jpx", ".jpc",
    ".j2c", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi",
})  # fmt: skip
# Names that systems and storage devices write beside a user's files, in lower case.
_SYSTEM = frozenset({
    "@eadir", "#recycle", "#snapshot", "@recycle", "@__thumb", "__macosx", "$recycle.bin",
    "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
})  # fmt: skip

HIDDEN = "hidden or written by the system"
NO_IMAGE = "not an image by their names"
NO_CLASS = "in no class folder"
SAME = "links to what is listed already"


class Skipped(NamedTuple):
    """A file or folder (then with a slash at its end) that a listing leaves out, and why."""

    path: str
    reason: str


def is_hidden(name: str) -> bool:
    """Return True for the name of a file or folder that no data set consists of."""
    return name[:1] == "." or name.lower() in _SYSTEM


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122, a fifth of pathlib's time


def reason_to_skip(path: str) -> str:
    """Return why a file, by its path in an archive or folder, is no image of a data set; "" if it
    is one."""
    if any(is_hidden(part) for part in path.split("/")):
        return HIDDEN
    return "" if has_image_suffix(path) else NO_IMAGE


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the entries of a folder that are not hidden, sorted."""
    return sorted(each for each in folder.glob(pattern) if not is_hidden(each.name))


@dataclass(frozen=True)
class ClassFolders:
    """The images of class folders: `ids` (paths) with `labels`, indices of `classes`, of which
    `empty` ones have no image; and what was skipped."""

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    empty: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def list_class_folders(root: Path, inside: str = "") -> ClassFolders:
    """List the images below `root/inside/CLASS`, in sorted order; paths are relative to `root`.

    Links are followed, but each real file is listed once a class: a link to a folder or file that
    the class has already, or to a folder around it, is skipped. Errors: `UserError` for a folder
    that cannot be read.
    """
    place = f"{root}/{inside}".rstrip("/")
    real = os.path.realpath(place)
    classes, skipped = [], []
    for entry in _entries(place):
        path = f"{inside}{entry.name}"
        if not _is_folder(entry):
            hidden = is_hidden(entry.name)
            reason = NO_CLASS if has_image_suffix(path) else NO_IMAGE
            skipped.append(Skipped(path, HIDDEN if hidden else reason))
        elif is_hidden(entry.name):
            skipped.append(Skipped(f"{path}/", HIDDEN))
        elif _is_around(os.path.realpath(entry.path), real):
            skipped.append(Skipped(f"{path}/", SAME))
        else:
            classes.append(entry.name)
    ids: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        found, others = list_images(root, f"{inside}{name}")
        ids += found
        labels += [label] * len(found)
        empty += [] if found else [f"{inside}{name}"]
        skipped += others
    return ClassFolders(tuple(classes), tuple(ids), tuple(labels), tuple(empty), tuple(skipped))


def list_images(root: Path, inside: str) -> tuple[list[str], list[Skipped]]:
    """Return the sorted paths of the images below `root/inside`, relative to `root`, and what was
    skipped. Each real file is listed once, by the path with the fewest links."""
    walk = _Walk(str(root))
    real_root = os.path.realpath(root)
    walk.folder(inside.rstrip("/"), os.path.realpath(f"{root}/{inside}".rstrip("/")))
    while walk.links:  # after all real folders, so that these give the names
        path, real = walk.links.pop(0)
        beside = os.path.realpath(os.path.dirname(f"{root}/{path}"))  # noqa: PTH120
        if _is_around(real, beside) or _is_around(real, real_root):
            walk.skipped.append(Skipped(f"{path}/", SAME))
        else:
            walk.folder(path, real)
    for path, real in walk.linked_files:
        if real in walk.real_files:
            walk.skipped.append(Skipped(path, SAME))
        else:
            walk.real_files.add(real)
            walk.found.append(path)
    return sorted(walk.found), walk.skipped


class _Walk:
    """The walk of one class: what it found, and the links that it has not followed yet."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.found: list[str] = []
        self.skipped: list[Skipped] = []
        self.seen: set[str] = set()  # real folders
        self.real_files: set[str] = set()
        self.links: list[tuple[str, str]] = []  # folders: path, real path
        self.linked_files: list[tuple[str, str]] = []

    def folder(self, path: str, real: str) -> None:
        """Walk a folder, by its path in the root and its real path."""
        if real in self.seen:
            self.skipped.append(Skipped(f"{path}/", SAME))
            return
        self.seen.add(real)
        for entry in _entries(f"{self.root}/{path}"):
            inner = f"{path}/{entry.name}" if path else entry.name
            is_folder, is_link = _is_folder(entry), entry.is_symlink()
            if is_folder and is_hidden(entry.name):
                self.skipped.append(Skipped(f"{inner}/", HIDDEN))
            elif is_folder and is_link:
                self.links.append((inner, os.path.realpath(entry.path)))
            elif is_folder:
                self.folder(inner, f"{real}/{entry.name}")
            elif is_hidden(entry.name):
                self.skipped.append(Skipped(inner, HIDDEN))
            elif not has_image_suffix(entry.name):
                self.skipped.append(Skipped(inner, NO_IMAGE))
            elif is_link:
                self.linked_files.append((inner, os.path.realpath(entry.path)))
            else:
                self.real_files.add(f"{real}/{entry.name}")
                self.found.append(inner)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_around(outer: str, inner: str) -> bool:
    """Return True if a real folder is another one, or contains it."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Describe what was skipped, in a line a reason."""
    reasons = dict.fromkeys(each.reason for each in skipped)
    return [
        f"skipped, {reason}: {some([s.path for s in skipped if s.reason == reason])}"
        for reason in reasons
    ]


def check_names(names: Iterable[str], where: Path | str, source: str) -> None:
    """Reject names that are not UTF-8: no results file could hold them.

    Errors: `UserError` beginning with `source` and naming the first one.
    """
    for name in names:
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                shown = printable(name)
                raise UserError(
                    f"{source}: {where}: {shown}: its name is not UTF-8, so that no results file "
                    f"can hold it; rename it, for example with convmv"
                ) from None


def printable(name: str) -> str:
    """Return a file name with the bytes that are not UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def some(names: Sequence[str]) -> str:
    """Join the first names; say how many there are if some are left out."""
    first = ", ".join(names[:5])
    return first + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
