"""Images in few large files: tar archives and Hugging Face data sets on disk.

A million small files are slow on a cluster's file system. Both formats allow random access, which
an exact resume needs. Nothing is downloaded: a data set must be on disk.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densevit.data.image import LazyImage, read_image
from densevit.data.image_folder import names_fingerprint
from densevit.utils.errors import UserError, reason_of


@dataclass(frozen=True)
class ArchivedImages:
    """The images of an archive; `read` returns the bytes of one by its index."""

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> LazyImage:
        """Return an image, not decoded. Errors: `UserError` naming the archive and the file."""
        return read_image(f"{self.root}: {self.ids[index]}", lambda: self.read(index))

    def fingerprint(self) -> dict[str, object]:
        """Return the same fingerprint as for a folder."""
        return names_fingerprint(self.classes, self.ids)


@dataclass(frozen=True)
class _TarReader:
    """timm's tar reader as a callable that can be pickled for data loader workers."""

    reader: Any

    def __call__(self, index: int) -> bytes:
        with self.reader[index][0] as file:
            content: bytes = file.read()
            return content


@dataclass(frozen=True)
class _TableReader:
    """A column of encoded images of a Hugging Face data set."""

    table: Any
    column: str

    def __call__(self, index: int) -> bytes:
        image = self.table[index][self.column]
        if image is None:
            raise ValueError("holds no image")
        content: bytes | None = image["bytes"]
        return content or Path(image["path"]).read_bytes()


def is_tar(path: Path) -> bool:
    """Return True for a tar file, or a folder of tar files without subfolders."""
    if path.is_dir():
        return any(path.glob("*.tar")) and not any(e.is_dir() for e in path.iterdir())
    return path.suffix == ".tar" and path.is_file()


def open_tar(path: Path, source: str) -> ArchivedImages:
    """Open a tar file of CLASS/image.jpg, or a folder of CLASS.tar files, with timm's reader.

    Errors: `UserError` if it is damaged or has no images.
    """
    from densevit.utils.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    try:
        # No open files are cached: processes that share a file share its read position. No index is
        # cached beside the data, which may belong to somebody else.
        reader = ReaderImageInTar(str(path), cache_tarfiles=False, cache_tarinfo=False)
    except (OSError, ValueError, AssertionError, tarfile.TarError) as error:
        reason = str(error) or "holds no images in class folders"
        raise UserError(f"{source}: {path}: cannot be read as a tar of images: {reason}") from None
    ids = tuple(
        f"{parent}/{member.path}" if parent else member.path for member, parent, _ in reader.samples
    )
    # timm sorts class names by the numbers in them; folders are sorted as text.
    names = sorted(reader.class_name_to_idx, key=reader.class_name_to_idx.get)
    classes, labels = _sorted_classes(names, reader.targets.tolist())
    return ArchivedImages(path, classes, ids, labels, _TarReader(reader))


def _sorted_classes(
    names: Sequence[str], numbers: Sequence[int]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the classes in the order of folders, and `numbers` as labels in that order."""
    classes = tuple(sorted(names))
    places = {name: place for place, name in enumerate(classes)}
    positions = [places[name] for name in names]
    return classes, tuple(positions[number] for number in numbers)


def is_hugging_face(path: Path) -> bool:
    """Return True for a folder written by `save_to_disk`, or with Parquet files as on the Hub."""
    if not path.is_dir():
        return False
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    return saved or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def open_hugging_face(path: Path, split: str, source: str) -> ArchivedImages:
    """Open a split of a Hugging Face data set with one image column and one class label column.

    `val` may also be named validation, valid or test. Errors: `UserError` naming the existing
    columns or splits.
    """
    data = _split(_load(path, source), split, path, source)
    import datasets

    def column(kind: type, what: str) -> str:
        found: list[str] = [
            name for name, feature in data.features.items() if isinstance(feature, kind)
        ]
        if len(found) != 1:
            names = ", ".join(data.column_names)
            raise UserError(f"{source}: {path}: must have one column of {what}, has {names}")
        return found[0]

    image, label = column(datasets.Image, "images"), column(datasets.ClassLabel, "class labels")
    table = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    numbers = list(data[label])
    if min(numbers, default=0) < 0:  # marks an image without a label
        raise UserError(f"{source}: {path}: {split} holds images without a label")
    classes, labels = _sorted_classes(data.features[label].names, numbers)
    ids = tuple(f"{split}-{index}" for index in range(len(data)))
    return ArchivedImages(path, classes, ids, labels, _TableReader(table, image))


def _load(path: Path, source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{source}: {path}: is a Hugging Face data set; reading it needs: pip install datasets"
        ) from None
    datasets.disable_progress_bars()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset("parquet", data_files=_parquet_files(path))
    except Exception as error:  # a foreign folder may fail in any part of the library
        reason = reason_of(error)
        raise UserError(f"{source}: {path}: cannot be read as a data set: {reason}") from None


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """Return the files of each split; a file name begins with its split, as on the Hub."""
    found: dict[str, list[str]] = {}
    for file in sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        split = file.stem.partition("-")[0]
        found.setdefault(split, []).append(str(file))
    return found


_NAMES = {"train": ("train",), "val": ("val", "validation", "valid", "test")}


def _split(data: Any, split: str, path: Path, source: str) -> Any:
    if not isinstance(data, dict):  # a data set without splits is a test set
        return data
    for name in (*_NAMES[split], *([next(iter(data))] if len(data) == 1 else [])):
        if name in data:
            return data[name]
    raise UserError(f"{source}: {path}: has no split {split}, but {', '.join(data)}")
