"""Which pictures a run sees: train, val and the benchmarks, found, checked and fingerprinted.

Imports no torch, so that a sweep can check its data before anything is launched.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from densevit.config import RunConfig
from densevit.data import shapes
from densevit.data.archives import is_hugging_face, is_tar, open_hugging_face, open_tar
from densevit.data.folders import check_classes, scan
from densevit.data.pictures import Picture
from densevit.errors import UserError


class Images(Protocol):
    """Labelled pictures: `ids` name them, `labels` index `classes`."""

    classes: tuple[str, ...]
    ids: Sequence[str]
    labels: Sequence[int]

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Picture:
        """A picture, not decoded yet."""
        ...

    def fingerprint(self) -> dict[str, object]:
        """What a run remembers of the pictures it saw."""
        ...


@dataclass(frozen=True)
class Data:
    """The pictures of a run; `benchmarks` are further test sets by name."""

    train: Images
    val: Images
    benchmarks: dict[str, Images]

    def fingerprint(self) -> dict[str, Any]:
        """Train, val and each benchmark: classes, counts, a hash of the names."""
        tests = {name: images.fingerprint() for name, images in self.benchmarks.items()}
        record = {"train": self.train.fingerprint(), "val": self.val.fingerprint()}
        return {**record, "benchmarks": tests}


def open_data(config: RunConfig, size: int) -> Data:
    """Find the pictures of a run whose model takes `size` pixels; nothing is decoded or drawn.

    Errors: `UserError` for a missing or empty folder, classes that differ between folders, and
    fewer training images than a batch.
    """
    data = _open_shapes(config, size) if config.dataset == "shapes" else _open_folders(config)
    for name, path in config.benchmarks.items():
        if name in ("train", "val") or name in data.benchmarks:
            raise UserError(f"benchmarks: {name}: is taken by the data set itself")
        source = f"benchmarks: {name}"
        images = _open_test_set(_resolved(path, source), source)
        check_classes(images, data.train.classes, source)
        data.benchmarks[name] = images
    if len(data.train) < config.batch_size:
        raise UserError(
            f"batch_size: {config.batch_size} is more than the {len(data.train)} training "
            f"images of {config.dataset}"
        )
    return data


def check_fingerprint(held: dict[str, Any], found: dict[str, Any], where: Path) -> None:
    """Refuse other pictures than those that the run has seen.

    Errors: `UserError` showing both fingerprints of what differs.
    """
    held_parts = {**held, **held.get("benchmarks", {})}
    found_parts = {**found, **found.get("benchmarks", {})}
    for name in held_parts.keys() & found_parts.keys() - {"benchmarks"}:
        if held_parts[name] != found_parts[name]:
            what = name if name == "init_checkpoint" else f"the {name} images"
            raise UserError(
                f"{where}: {what} have changed since this run saw them: "
                f"then {held_parts[name]}, now {found_parts[name]}"
            )


def data_folder(config: RunConfig) -> Path:
    """Where the files of a data set lie: `data_dir`, else $DENSEVIT_DATA/DATASET.

    The drawn set falls back on the user's cache. Errors: `UserError` if nothing says where.
    """
    if config.data_dir:
        return _resolved(config.data_dir, "data_dir")
    root = os.environ.get("DENSEVIT_DATA")
    if root:
        return Path(root).expanduser().absolute() / config.dataset
    if config.dataset == "shapes":
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(cache).expanduser() / "densevit" / "shapes"
    raise UserError(
        f"data_dir: where {config.dataset} lies is not said; give data_dir (a folder with train/ "
        f"and val/), or set $DENSEVIT_DATA to a folder that holds {config.dataset}/"
    )


@dataclass(frozen=True)
class DrawnImages:
    """A split of the embedded set; drawn (once, on disk) when its first picture is needed."""

    split: str
    size: int
    folder: Path
    classes: tuple[str, ...] = shapes.CLASSES

    @cached_property
    def drawn(self) -> shapes.Split:
        try:
            return shapes.load(self.split, self.size, self.folder)
        except (ValueError, OSError) as error:
            raise UserError(f"shapes: {error}") from None

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{self.split}-{index}" for index in range(len(self)))

    @cached_property
    def labels(self) -> list[int]:
        return np.asarray(self.drawn.labels).tolist()

    def __len__(self) -> int:
        return shapes.COUNTS[self.split]

    def picture(self, index: int) -> Picture:
        return Picture(self.ids[index], Image.fromarray(self.drawn.images[index]), (self.size,) * 2)

    def fingerprint(self) -> dict[str, object]:
        """The recipe, which decides every pixel."""
        return {"shapes": shapes.VERSION, "size": self.size, "images": len(self)}


def _open_shapes(config: RunConfig, size: int) -> Data:
    if size < 32:
        raise UserError(f"model_kwargs: img_size {size}: the data set shapes is drawn from 32 up")
    folder = data_folder(config)
    split = {name: DrawnImages(name, size, folder) for name in shapes.SPLITS}
    return Data(split["train"], split["val"], {name: split[name] for name in shapes.SHIFTED})


def _open_folders(config: RunConfig) -> Data:
    folder = data_folder(config)
    source = f"{config.dataset}: data_dir"
    if not folder.is_dir():
        raise UserError(f"{source}: {folder}: no such folder (wanted: one with train/ and val/)")
    train, val = (_open(folder, split, source) for split in ("train", "val"))
    check_classes(val, train.classes, source)
    return Data(train, val, {})


def _open(folder: Path, split: str, source: str) -> Images:
    """A split: SPLIT/ with class folders or tar files, SPLIT.tar, or one of Hugging Face's."""
    if is_hugging_face(folder):
        return open_hugging_face(folder, split, source)
    archive = folder / f"{split}.tar"
    return _open_test_set(archive if archive.exists() else folder / split, source)


def _open_test_set(path: Path, source: str) -> Images:
    if is_tar(path):
        return open_tar(path, source)
    if is_hugging_face(path):
        return open_hugging_face(path, "val", source)
    return scan(path, source)


def _resolved(path: str, source: str) -> Path:
    expanded = Path(os.path.expandvars(path)).expanduser()
    if "$" in str(expanded):
        raise UserError(f"{source}: {path}: the variable is not set")
    return expanded.absolute()
