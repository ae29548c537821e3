"""Which pictures a run sees: train, val and the benchmarks, found, checked and fingerprinted.

Imports no torch, so that a sweep can check its data before anything is launched.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densevit.config import PROBES, RunConfig
from densevit.data import shapes
from densevit.data.archives import is_hugging_face, open_hugging_face
from densevit.data.benchmarks import (
    TestSet,
    check_classes,
    open_benchmark,
    open_images,
    plain_set,
    resolved,
)
from densevit.data.pictures import Images, Picture
from densevit.errors import UserError, nearest


@dataclass(frozen=True)
class Data:
    """The pictures of a run; `benchmarks` are further test sets by name."""

    train: Images
    val: TestSet
    benchmarks: dict[str, TestSet]

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
    for name, given in config.benchmarks.items():
        if name in ("train", "val", *PROBES) or name in data.benchmarks:
            raise UserError(f"benchmarks: {name}: is taken by something else")
        wanted = given if isinstance(given, str | None) else given.model_dump()
        outputs = tuple(data.train.classes)
        data.benchmarks[name] = open_benchmark(name, wanted, outputs, f"benchmarks: {name}")
    _check_looks(config, data)
    if len(data.train) < config.batch_size:
        raise UserError(
            f"batch_size: {config.batch_size} is more than the {len(data.train)} training "
            f"images of {config.dataset}"
        )
    return data


def _check_looks(config: RunConfig, data: Data) -> None:
    for name in config.watched:
        if name not in ("knn", "knn-patch") and name not in data.benchmarks:
            hint = nearest(name, ["knn", "knn-patch", *data.benchmarks])
            raise UserError(f"watched: {name}: is none of the run's test sets; {hint}")
    if "dense-probe" in config.probes and config.dataset != "shapes" and not config.masks:
        raise UserError(
            "probes: dense-probe: needs pictures with masks; give masks: a folder with images/ and "
            "masks/ in train/ and val/, one in Pascal VOC's layout, or shapes"
        )


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
        return resolved(config.data_dir, "data_dir")
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
    tests = {name: plain_set(name, split[name]) for name in ("val", *shapes.SHIFTED)}
    return Data(split["train"], tests.pop("val"), tests)


def _open_folders(config: RunConfig) -> Data:
    train, val = open_splits(data_folder(config), f"{config.dataset}: data_dir")
    return Data(train, val, {})


def open_splits(folder: Path, source: str) -> tuple[Images, TestSet]:
    """train and val of a folder that holds both; `source` begins the messages of errors."""
    if not folder.is_dir():
        what = "is a file and no folder" if folder.exists() else "no such folder"
        raise UserError(f"{source}: {folder}: {what} (wanted: one with train/ and val/)")
    train, val = (_open(folder, split, source) for split in ("train", "val"))
    check_classes(val, train.classes, source)
    return train, plain_set("val", val)


def _open(folder: Path, split: str, source: str) -> Images:
    """A split: SPLIT/ with class folders or tar files, SPLIT.tar, or one of Hugging Face's."""
    if is_hugging_face(folder):
        return open_hugging_face(folder, split, source)
    archive = folder / f"{split}.tar"
    return open_images(archive if archive.exists() else folder / split, source)
