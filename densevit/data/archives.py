"""Images in few large files: tar archives here, data sets on disk in `hugging_face`.

A million small files are slow on a cluster's file system. Both formats allow random access, which
an exact resume needs.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from densevit.data.image import LazyImage, read_image
from densevit.data.image_files import Skipped, check_names
from densevit.data.image_folder import FolderImages, names_fingerprint
from densevit.data.tar_files import list_tars
from densevit.utils.errors import UserError, reason_of


@dataclass(frozen=True)
class ArchivedImages:
    """The images of an archive; `read` returns the bytes of one by its index."""

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    read: Callable[[int], bytes]
    skipped: tuple[Skipped, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> LazyImage:
        """Return an image, not decoded. Errors: `UserError` naming the archive and the file."""
        return read_image(f"{self.root}: {self.ids[index]}", lambda: self.read(index))

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file."""
        return self.read(index)

    def fingerprint(self) -> dict[str, object]:
        """Return the same fingerprint as for a folder."""
        return names_fingerprint(self.classes, self.ids)


StoredImages = FolderImages | ArchivedImages


def open_tar(path: Path, source: str, *, labelled: bool = True) -> ArchivedImages:
    """Open a tar file of CLASS/image.jpg, or a folder of CLASS.tar files; also compressed ones.

    If not `labelled`, images may lie anywhere and are of one class. Errors: `UserError` if it is
    damaged, has no images, or a name is not UTF-8.
    """
    try:
        found = list_tars(path, labelled=labelled)
    except (OSError, ValueError, tarfile.TarError) as error:
        reason = reason_of(error)
        raise UserError(f"{source}: {path}: cannot be read as a tar of images: {reason}") from None
    if not found.ids:
        where = " in class folders" if labelled else ""
        raise UserError(f"{source}: {path}: holds no images{where}")
    check_names(found.ids, path, source)
    return ArchivedImages(path, *found)


@dataclass(frozen=True)
class _Rows:
    """Reads some images of an archive."""

    read: Callable[[int], bytes]
    rows: Sequence[int]

    def __call__(self, index: int) -> bytes:
        return self.read(self.rows[index])


def select(images: StoredImages, rows: Sequence[int]) -> StoredImages:
    """Return some of the images, in the order of `rows`."""
    ids, labels = tuple(images.ids[row] for row in rows), tuple(images.labels[row] for row in rows)
    if isinstance(images, FolderImages):
        return replace(images, ids=ids, labels=labels)
    return replace(images, ids=ids, labels=labels, read=_Rows(images.read, rows))
