"""Pictures in few large files: tar archives and Hugging Face data sets on disk.

A million small files are slow on a cluster's file system. Both are read in any order, which an
exact resume needs. Nothing is fetched: a data set must lie on the disk.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densevit.data.folders import names_fingerprint
from densevit.data.pictures import Picture, read_picture
from densevit.errors import UserError


@dataclass(frozen=True)
class ArchivedImages:
    """The pictures of an archive; `read` gives the bytes of one by its index."""

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, index: int) -> Picture:
        """Errors: `UserError` naming the archive and the file in it."""
        return read_picture(f"{self.root}: {self.ids[index]}", lambda: self.read(index))

    def fingerprint(self) -> dict[str, object]:
        """As of a folder."""
        return names_fingerprint(self.classes, self.ids)


@dataclass(frozen=True)
class _TarReader:
    """timm's reader; a class, so that it can be sent to a loading process."""

    reader: Any

    def __call__(self, index: int) -> bytes:
        with self.reader[index][0] as file:
            return file.read()


@dataclass(frozen=True)
class _TableReader:
    """A column of encoded pictures of a Hugging Face data set."""

    table: Any
    column: str

    def __call__(self, index: int) -> bytes:
        held = self.table[index][self.column]
        if held is None:
            raise ValueError("holds no picture")
        return held["bytes"] or Path(held["path"]).read_bytes()


def is_tar(path: Path) -> bool:
    """Whether a path is a tar file, or a folder that holds tar files and no folders of pictures."""
    if path.is_dir():
        return any(path.glob("*.tar")) and not any(e.is_dir() for e in path.iterdir())
    return path.suffix == ".tar" and path.is_file()


def open_tar(path: Path, source: str) -> ArchivedImages:
    """A tar file with CLASS/picture.jpg in it, or a folder of CLASS.tar files, by timm's reader.

    Errors: `UserError` if it is damaged or holds no picture.
    """
    from densevit.torchvision_guard import ensure_torchvision

    ensure_torchvision()
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    try:
        # Open files are not kept: processes that share one would read at each other's places.
        # Nor is an index kept beside the data, which may belong to somebody else.
        reader = ReaderImageInTar(str(path), cache_tarfiles=False, cache_tarinfo=False)
    except (OSError, ValueError, AssertionError, tarfile.TarError) as error:
        reason = str(error) or "holds no images in class folders"
        raise UserError(f"{source}: {path}: cannot be read as a tar of images: {reason}") from None
    ids = tuple(
        f"{parent}/{member.path}" if parent else member.path for member, parent, _ in reader.samples
    )
    # timm orders classes by the numbers in their names, folders are ordered by their letters.
    names = sorted(reader.class_name_to_idx, key=reader.class_name_to_idx.get)
    classes, labels = _sorted_classes(names, reader.targets.tolist())
    return ArchivedImages(path, classes, ids, labels, _TarReader(reader))


def _sorted_classes(
    names: Sequence[str], numbers: Sequence[int]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The classes in the order that folders have, and labels in it of numbers in the given one."""
    classes = tuple(sorted(names))
    places = {name: place for place, name in enumerate(classes)}
    positions = [places[name] for name in names]
    return classes, tuple(positions[number] for number in numbers)


def is_hugging_face(path: Path) -> bool:
    """Whether a folder is a saved data set: by `save_to_disk`, or Parquet files as on the hub."""
    if not path.is_dir():
        return False
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    return saved or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def open_hugging_face(path: Path, split: str, source: str) -> ArchivedImages:
    """A split of a Hugging Face data set with one column of pictures and one of class labels.

    `val` is also looked for under the names validation and test.
    Errors: `UserError` naming the columns or splits that there are.
    """
    data = _split(_load(path, source), split, path, source)
    import datasets

    def column(kind: type, what: str) -> str:
        found = [name for name, feature in data.features.items() if isinstance(feature, kind)]
        if len(found) != 1:
            names = ", ".join(data.column_names)
            raise UserError(f"{source}: {path}: wanted one column of {what} among {names}")
        return found[0]

    image, label = column(datasets.Image, "images"), column(datasets.ClassLabel, "class labels")
    table = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    numbers = list(data[label])
    if min(numbers, default=0) < 0:  # the mark of what has no label
        raise UserError(f"{source}: {path}: {split} holds pictures without a label")
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
    except Exception as error:  # whatever part of it meets a foreign folder
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: {path}: cannot be read as a data set: {reason}") from None


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """The files of each split, which begin with its name, as the hub has them."""
    found: dict[str, list[str]] = {}
    for file in sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]):
        split = file.stem.partition("-")[0]
        found.setdefault(split, []).append(str(file))
    return found


_NAMES = {"train": ("train",), "val": ("val", "validation", "valid", "test")}


def _split(data: Any, split: str, path: Path, source: str) -> Any:
    if not isinstance(data, dict):  # a data set without splits serves as a test set
        return data
    for name in (*_NAMES[split], *([next(iter(data))] if len(data) == 1 else [])):
        if name in data:
            return data[name]
    raise UserError(f"{source}: {path}: has no split {split}, but {', '.join(data)}")
