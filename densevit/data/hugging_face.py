"""Images of Hugging Face data sets on disk. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from densevit.data.archives import ArchivedImages
from densevit.data.image_files import UNLABELLED, visible
from densevit.utils.errors import UserError, nearest, reason_of

Split = Literal["train", "val", "test"]

# The names of the splits of a run, and of a test set, which may also be the only split.
_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "test"),
    "test": ("val", "validation", "valid", "test"),
}


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


def is_hugging_face(path: Path) -> bool:
    """Return True for a folder written by `save_to_disk`, or with Parquet files as on the Hub."""
    if not path.is_dir():
        return False
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    return saved or bool(_parquet_files(path))


def open_hugging_face(
    path: Path, split: Split, source: str, label_column: str | None = None, *, labelled: bool = True
) -> ArchivedImages:
    """Open a split of a Hugging Face data set with one image column.

    `val` may also be named validation, valid or test. `test` is a set of its own, which may have a
    single split or none. Labels come from `label_column` (class labels, integers or text), else
    from the only column of class labels. If not `labelled`, a data set without splits is `train`,
    and all images are of one class. Errors: `UserError` naming the existing columns or splits.
    """
    data = _load(path, source)
    if labelled or isinstance(data, dict):
        data = _split(data, split, path, source)
    import datasets

    images = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if len(images) != 1:
        names = ", ".join(data.column_names)
        raise UserError(f"{source}: {path}: must have one column of images, has {names}")
    table = data.select_columns(images).cast_column(images[0], datasets.Image(decode=False))
    classes: tuple[str, ...] = UNLABELLED
    labels: tuple[int, ...] = (0,) * len(data)
    if labelled:
        label = _label_column(data, path, source, label_column)
        classes, labels = _labels(data, label, f"{source}: {path}: {split}")
    part = "train" if split == "train" else "val"
    ids = tuple(f"{part}-{index}" for index in range(len(data)))
    return ArchivedImages(path, classes, ids, labels, _TableReader(table, images[0]))


def _label_column(data: Any, path: Path, source: str, given: str | None) -> str:
    import datasets

    of_classes: list[str] = [
        name for name, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)
    ]
    plain = [
        name
        for name, kind in data.features.items()
        if isinstance(kind, datasets.Value) and ("int" in kind.dtype or "string" in kind.dtype)
    ]
    if given is not None:
        if given not in (*of_classes, *plain):
            hint = nearest(given, [*of_classes, *plain])
            raise UserError(
                f"{source}: {path}: label_column: {given}: is no column of class labels, integers "
                f"or text; {hint}"
            )
        return given
    if len(of_classes) == 1:
        return of_classes[0]
    names = ", ".join(of_classes or data.column_names)
    named = f"; name one: label_column: {(*of_classes, *plain)[0]}" if of_classes or plain else ""
    raise UserError(f"{source}: {path}: must have one column of class labels, has {names}{named}")


def _labels(data: Any, column: str, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return class names, in the order of folders, and the images' indices of them."""
    values, names = list(data[column]), getattr(data.features[column], "names", None)
    if any(value in (None, "") or (isinstance(value, int) and value < 0) for value in values):
        raise UserError(f"{where} holds images without a label")  # -1 marks one
    if names is None:
        names = sorted(set(values))
        place = {value: index for index, value in enumerate(names)}
        values = [place[value] for value in values]
    return sorted_classes([str(name) for name in names], values)


def sorted_classes(
    names: Sequence[str], numbers: Sequence[int]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the classes in the order of folders, and `numbers` as labels in that order."""
    classes = tuple(sorted(names))
    places = {name: place for place, name in enumerate(classes)}
    positions = [places[name] for name in names]
    return classes, tuple(positions[number] for number in numbers)


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
    for file in [*visible(path, "*.parquet"), *visible(path, "data/*.parquet")]:
        split = file.stem.partition("-")[0]
        found.setdefault(split, []).append(str(file))
    return found


def _split(data: Any, split: Split, path: Path, source: str) -> Any:
    if not isinstance(data, dict):
        if split == "test":
            return data
        raise UserError(
            f"{source}: {path}: has no splits: its images cannot be both train and val; save two "
            f"splits, train and validation, for example with Dataset.train_test_split"
        )
    for name in (
        *_NAMES[split],
        *([next(iter(data))] if split == "test" and len(data) == 1 else []),
    ):
        if name in data:
            return data[name]
    raise UserError(f"{source}: {path}: has no split {split}, but {', '.join(data)}")
