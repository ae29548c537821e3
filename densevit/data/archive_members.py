"""Read the members of tar and zip archives; reject those that would leave the folder."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from densevit.utils.errors import UserError, reason_of


class _Member(NamedTuple):
    """A file of an archive; `open` returns its content while the archive is being read."""

    name: str
    size: int
    open: Callable[[], Any]


@contextmanager
def open_archive(name: str, archive: Path) -> Iterator[Iterator[_Member]]:
    """Yield the files of an archive; none is a link or a device or leaves the folder.

    Errors: `UserError` for such members, naming them, and for a damaged archive.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                yield _zipped(name, archive, file)
        else:
            with tarfile.open(archive) as file:
                yield _tarred(name, archive, file)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        why = reason_of(error)
        raise UserError(
            f"{name}: {archive}: cannot be read as an archive: {why} (is it whole?)"
        ) from None


def _tarred(name: str, archive: Path, file: tarfile.TarFile) -> Iterator[_Member]:
    while (member := file.next()) is not None:
        file.members.clear()  # type: ignore[attr-defined]  # a million of them fill the memory
        _refuse(f"{name}: {archive}", member.name, member.isfile() or member.isdir())
        if member.isfile():
            yield _Member(member.name, member.size, partial(file.extractfile, member))


def _zipped(name: str, archive: Path, file: zipfile.ZipFile) -> Iterator[_Member]:
    for member in file.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 if made on another system
        _refuse(f"{name}: {archive}", member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        if not member.is_dir():
            yield _Member(member.filename, member.file_size, partial(file.open, member))


def _refuse(where: str, member: str, plain: bool) -> None:
    """Reject links, devices and paths out of the folder; stricter than tarfile's filter `data`."""
    if not plain:
        raise UserError(f"{where}: {member}: is a link or a device; nothing was written")
    if member.startswith("/") or ".." in member.split("/"):
        raise UserError(f"{where}: {member}: leads out of the folder; nothing was written")
