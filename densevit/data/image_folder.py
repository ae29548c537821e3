"""Images in class folders. Imports no torch, so that checks start quickly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from densevit.data.image import LazyImage, read_image
from densevit.utils.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder `root/CLASS/**/image`, in sorted order.

    `ids` are paths relative to `root`; `labels` index `classes`.
    """

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> LazyImage:
        """Return an image, not decoded. Errors: `UserError` naming the file."""
        return read_file(os.path.join(self.root, self.ids[index]))  # noqa: PTH118, a fifth of pathlib's time

    def fingerprint(self) -> dict[str, object]:
        """Return the counts of classes and images, and a hash of the ids."""
        return names_fingerprint(self.classes, self.ids)


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
    missing, has no class folders, or a class has no images.
    """
    if not root.is_dir():
        raise UserError(f"{source}: {root}: no such folder")
    classes = sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
    if not classes:
        raise UserError(f"{source}: {root}: holds no class folders (expected CLASS/image.jpg)")
    ids: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _pictures(root, name)
        if not found:
            raise UserError(f"{source}: {root / name}: holds no images ({' '.join(SUFFIXES)})")
        ids += found
        labels += [label] * len(found)
    return FolderImages(root, tuple(classes), tuple(ids), tuple(labels))


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123, one read, no buffer
        return file.read()


def _pictures(root: Path, class_name: str) -> list[str]:
    found = []
    for folder, subfolders, names in os.walk(root / class_name, followlinks=True):
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        found += [
            f"{relative}/{name}"
            for name in names
            if os.path.splitext(name)[1].lower() in SUFFIXES and name[0] != "."  # noqa: PTH122
        ]
    return sorted(found)


def some(names: list[str]) -> str:
    first = ", ".join(names[:5])
    return first + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
