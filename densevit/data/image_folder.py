"""Images in class folders. Imports no torch, so that checks start quickly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densevit.data.image import LazyImage, read_image
from densevit.data.image_files import NO_CLASS, Skipped, check_names, list_class_folders
from densevit.utils.errors import UserError


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder `root/CLASS/**/image`, in sorted order.

    `ids` are paths relative to `root`; `labels` index `classes`; `skipped` is what the folder holds
    besides them.
    """

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    skipped: tuple[Skipped, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> LazyImage:
        """Return an image, not decoded. Errors: `UserError` naming the file."""
        return read_file(self._path(index))

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file."""
        return _content(self._path(index))

    def fingerprint(self) -> dict[str, object]:
        """Return the counts of classes and images, and a hash of the ids."""
        return names_fingerprint(self.classes, self.ids)

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self.ids[index])  # noqa: PTH118, a fifth of pathlib's time


def read_file(path: str) -> LazyImage:
    """Return the image in a file. Errors: `UserError` naming the file."""
    return read_image(path, lambda: _content(path))


def names_fingerprint(classes: Sequence[str], ids: Sequence[str]) -> dict[str, object]:
    """Return the counts of classes and images, and a hash of the ids."""
    names = hashlib.sha256("\n".join(ids).encode("utf-8", "surrogateescape")).hexdigest()
    return {"classes": len(classes), "images": len(ids), "names": names[:16]}


def scan(root: Path, source: str) -> FolderImages:
    """List a folder of class folders.

    `source` begins the error messages ("pacs: data_dir"). Errors: `UserError` if the folder is
    missing, has no class folders, a class has no images, or a name is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"{source}: {root}: no such folder")
    found = list_class_folders(root)
    if not found.classes:
        loose = any(each.reason == NO_CLASS for each in found.skipped)
        hint = "; without labels: unlabelled: true, with lambda_weight: 1" if loose else ""
        raise UserError(
            f"{source}: {root}: holds no class folders (expected CLASS/image.jpg{hint})"
        )
    if found.empty:
        raise UserError(f"{source}: {root / found.empty[0]}: holds no images (.jpg, .png, ...)")
    check_names(found.ids, root, source)
    return FolderImages(root, found.classes, found.ids, found.labels, found.skipped)


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123, one read, no buffer
        return file.read()
