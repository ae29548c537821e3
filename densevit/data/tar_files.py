"""List the images in tar files with the places of their bytes, so that any one is a single read."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from densevit.data.image_files import (
    NO_CLASS,
    SAME,
    UNLABELLED,
    Skipped,
    is_hidden,
    reason_to_skip,
    visible,
)
from densevit.utils.errors import UserError
from densevit.utils.files import replacing

log = logging.getLogger("densevit")

PLAIN = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
UNUSED_DAYS = 60  # after which an unpacked copy is removed


class _Place(NamedTuple):
    """Where an image is: the number of its tar file, and its bytes there."""

    file: int
    offset: int
    size: int


class TarImages(NamedTuple):
    """The images of tar files: `ids` are CLASS/.../image, sorted; `labels` index `classes`."""

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    reader: TarReader
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class TarReader:
    """Reads the bytes of an image by its index; it can be pickled for data loader workers.

    It keeps no file open: processes that share a file share its read position.
    """

    files: tuple[str, ...]
    places: NDArray[np.int64]  # (n, 3), rows of `_Place`

    def __call__(self, index: int) -> bytes:
        number, offset, size = self.places[index].tolist()
        with open(self.files[number], "rb", buffering=0) as file:  # noqa: PTH123, one read, no buffer
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise OSError("the archive ends within this image")
        return content


def tar_name(name: str) -> str:
    """Return a file's name without the ending of a tar file; "" if it has none."""
    for suffix in (*COMPRESSED, PLAIN):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return ""


def is_tar(path: Path) -> bool:
    """Return True for a tar file, or a folder of tar files without subfolders."""
    if path.is_dir():
        entries = visible(path)
        return any(tar_name(e.name) for e in entries) and not any(e.is_dir() for e in entries)
    return bool(tar_name(path.name)) and path.is_file()


def list_tars(path: Path, *, labelled: bool = True) -> TarImages:
    """List a tar file of CLASS/image (also inside one further folder) or of CLASS.tar files, or a
    folder of CLASS.tar files; by the same rules as class folders. If not `labelled`, images may lie
    anywhere, and are of one class.

    A compressed tar is unpacked once to the user's cache. Errors: `OSError` and `tarfile.TarError`
    if a file is damaged; `UserError` if the cache has no room.
    """
    listing = _Listing()
    if path.is_dir():
        for each in sorted(path.iterdir()):
            if tar_name(each.name) and not is_hidden(each.name):
                listing.add(each, tar_name(each.name))
            else:
                listing.skipped.append(Skipped(each.name, reason_to_skip(each.name) or NO_CLASS))
    else:
        listing.add(path, "")
    return listing.images(by_file=path.is_dir()) if labelled else listing.unlabelled()


@dataclass
class _Listing:
    """The members of some tar files, by path."""

    files: list[str] = field(default_factory=list)
    found: dict[str, _Place] = field(default_factory=dict)
    soft: set[str] = field(default_factory=set)  # symbolic links
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, path: Path, inside: str) -> None:
        """List the members of a file as lying in the folder `inside`; "" is none."""
        number = len(self.files)
        self.files.append(str(_plain(path)))
        with tarfile.open(self.files[-1], "r:") as tar:
            self._members(tar, inside, number, 0)

    def _members(self, tar: tarfile.TarFile, inside: str, number: int, start: int) -> None:
        links = []
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them fill the memory
            path = _joined(inside, member.name)
            place = _Place(number, start + member.offset_data, member.size)
            if member.isdir():
                continue
            if path.lower().endswith(PLAIN) and member.isfile() and not _in_hidden(path):
                with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                    self._members(inner, path[: -len(PLAIN)], number, place.offset)
            elif reason := reason_to_skip(path):
                self.skipped.append(Skipped(path, reason))
            elif member.issparse():
                raise tarfile.TarError(f"{path}: is stored sparsely; pack it without --sparse")
            elif member.isfile():
                self.found[path] = place  # of two members of one name the last counts, as unpacked
            elif member.islnk():
                links.append((path, _joined(inside, member.linkname)))
            elif member.issym():
                target = _joined(str(PurePosixPath(path).parent), member.linkname)
                links.append((path, os.path.normpath(target)))
                self.soft.add(path)
            else:
                self.skipped.append(Skipped(path, "no regular file"))
        for path, target in links:
            if target in self.found:
                self.found[path] = self.found[target]
            else:
                self.skipped.append(Skipped(path, "links to what the archive does not hold"))

    def images(self, *, by_file: bool) -> TarImages:
        """Return the images by class: the first folder of their paths, below one that holds all
        the others. If the classes are those of the files (`by_file`), there is none such."""
        paths = {path: path.split("/") for path in self.found}
        while not by_file and paths and _have_a_folder_around(paths.values()):
            paths = {path: parts[1:] for path, parts in paths.items()}
        self.skipped += [Skipped(path, NO_CLASS) for path, parts in paths.items() if len(parts) < 2]
        rows: list[tuple[str, str, _Place]] = []
        known: set[tuple[str, _Place]] = set()
        for path in sorted(paths, key=lambda path: (path in self.soft, path)):
            parts, place = paths[path], self.found[path]
            if path in self.soft and (parts[0], place) in known:
                self.skipped.append(Skipped(path, SAME))
            elif len(parts) > 1:
                known.add((parts[0], place))
                rows.append((parts[0], "/".join(parts), place))
        return self._made(rows)

    def unlabelled(self) -> TarImages:
        """Return all images as of one class; a link to one of them is none."""
        self.skipped += [Skipped(path, SAME) for path in sorted(self.soft & self.found.keys())]
        one = UNLABELLED[0]
        return self._made([(one, p, at) for p, at in self.found.items() if p not in self.soft])

    def _made(self, rows: list[tuple[str, str, _Place]]) -> TarImages:
        """Return the images of some rows: class, path and place."""
        rows.sort()
        classes = tuple(dict.fromkeys(name for name, _, _ in rows))
        label_of = {name: label for label, name in enumerate(classes)}
        places = np.array([place for _, _, place in rows], np.int64).reshape(-1, 3)
        return TarImages(
            classes,
            tuple(path for _, path, _ in rows),
            tuple(label_of[name] for name, _, _ in rows),
            TarReader(tuple(self.files), places),
            tuple(self.skipped),
        )


def _have_a_folder_around(paths: Collection[list[str]]) -> bool:
    """Return True if all paths are FOLDER/CLASS/.../image, with the same FOLDER."""
    return all(len(parts) > 2 for parts in paths) and len({parts[0] for parts in paths}) == 1


def _in_hidden(path: str) -> bool:
    return reason_to_skip(f"{path}.png") != ""


def _joined(folder: str, name: str) -> str:
    return "/".join(
        part for part in (*folder.split("/"), *name.split("/")) if part not in ("", ".")
    )


def _plain(path: Path) -> Path:
    """Return a tar file without compression, which allows no random access: itself, or a copy in
    the user's cache. The copy is made once; processes wait for the one that makes it."""
    if path.name.lower().endswith(PLAIN):
        return path
    found = path.stat()
    key = f"{path.resolve()}\0{found.st_size}\0{found.st_mtime_ns}"
    digest = blake2b(os.fsencode(key), digest_size=8).hexdigest()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    copy = (
        Path(cache).expanduser() / "densevit" / "archives" / f"{tar_name(path.name)}-{digest}.tar"
    )
    copy.parent.mkdir(parents=True, exist_ok=True)
    with copy.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            _remove_unused(copy.parent)
            free = shutil.disk_usage(copy.parent).free
            if free < found.st_size:
                raise UserError(
                    f"{path}: is compressed, and {copy.parent} has no room for the plain archive "
                    f"that random access needs; unpack it to a .tar, and give that"
                )
            log.info("%s: is compressed; unpacking it once to %s", path, copy)
            _unpack(path, copy)
        with suppress(OSError):  # another user's cache
            os.utime(copy)  # the time of its last use
    return copy


def _remove_unused(folder: Path) -> None:
    """Remove copies that no run has opened for `UNUSED_DAYS`: their archives may be gone."""
    for copy in folder.glob("*.tar"):
        with suppress(OSError):
            if time.time() - copy.stat().st_mtime > 86400 * UNUSED_DAYS:
                copy.unlink()
                copy.with_suffix(".lock").unlink()


def _unpack(path: Path, copy: Path) -> None:
    import bz2
    import gzip
    import lzma

    modules: dict[str, Any] = {".bz2": bz2, ".xz": lzma}
    module = modules.get(path.suffix.lower(), gzip)
    with replacing(copy) as temporary:
        try:
            with module.open(path, "rb") as source, open(temporary, "wb") as target:  # noqa: PTH123
                shutil.copyfileobj(source, target, 1 << 20)
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise OSError(f"is damaged: {error}") from None


def tar_paths(folder: Path, split: str) -> Iterator[Path]:
    """Yield the names that the tar file of a split may have."""
    return (folder / f"{split}{suffix}" for suffix in (PLAIN, *COMPRESSED))
