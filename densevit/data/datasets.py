"""Find, check and fingerprint the images of a run: train, val and the benchmarks.

Imports no torch, so that a sweep can check its data before a launch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from densevit.config.probes import probes_by_name
from densevit.config.run_config import RunConfig
from densevit.data.archives import StoredImages
from densevit.data.class_names import check_several
from densevit.data.fingerprint import differences, fingerprint
from densevit.data.hugging_face import is_hugging_face, open_hugging_face
from densevit.data.image import Images, Labels, LazyImage
from densevit.data.image_files import skipped_lines
from densevit.data.open_benchmark import (
    by_output,
    open_benchmark,
    open_images,
    resolved,
)
from densevit.data.shapes import dataset
from densevit.data.tar_files import tar_paths
from densevit.data.test_set import TestSet, plain_set
from densevit.data.unlabelled import open_unlabelled
from densevit.runs.records import FingerprintRecord
from densevit.utils.errors import UserError, nearest


@dataclass(frozen=True)
class Data:
    """The images of a run; `benchmarks` are further test sets. Without labels `val` is None."""

    train: Images
    val: TestSet | None
    benchmarks: dict[str, TestSet]

    @property
    def test_sets(self) -> dict[str, TestSet]:
        """Return val, if any, and the benchmarks."""
        return self.benchmarks if self.val is None else {"val": self.val, **self.benchmarks}

    @property
    def shown(self) -> Images:
        """Return the images that health metrics and figures look at: val, else train."""
        return self.train if self.val is None else self.val

    def fingerprint(self) -> dict[str, Any]:
        """Return `fingerprint.fingerprint` of each set: counts, names, labels and content."""
        tests = {name: fingerprint(images) for name, images in self.benchmarks.items()}
        val = {} if self.val is None else {"val": fingerprint(self.val)}
        return {"train": fingerprint(self.train), **val, "benchmarks": tests}

    def skipped(self) -> list[str]:
        """Return lines about the files that no set reads."""
        tests = {name: test.images for name, test in self.test_sets.items()}
        return [
            f"{name}: {line}"
            for name, images in {"train": self.train, **tests}.items()
            for line in skipped_lines(getattr(images, "skipped", ()))
        ]

    def notes(self) -> list[str]:
        """Return lines about classes without images, and without an output of the network."""
        return [f"{name}: {line}" for name, test in self.test_sets.items() for line in test.notes()]


def open_data(config: RunConfig, size: int) -> Data:
    """Find the images of a run whose model takes `size` pixels; decodes and draws nothing.

    Errors: `UserError` for a missing or empty folder, classes that differ between folders, and
    fewer training images than a batch.
    """
    drawn = config.dataset in dataset.SETS
    data = _open_drawn(config, size) if drawn else _open_stored(config)
    for name, given in config.benchmarks.items():
        if name in ("train", "val", *probes_by_name()) or name in data.benchmarks:
            raise UserError(
                f"benchmarks: {name}: is the name of a split, of a probe or of another benchmark"
            )
        record = given if isinstance(given, str | None) else given.model_dump()
        outputs = tuple(data.train.classes)
        data.benchmarks[name] = open_benchmark(name, record, outputs, f"benchmarks: {name}")
    _check_evaluations(config, data)
    if len(data.train) < config.batch_size:
        raise UserError(
            f"batch_size: {config.batch_size} is more than the {len(data.train)} training "
            f"images of {config.dataset}"
        )
    return data


def _check_evaluations(config: RunConfig, data: Data) -> None:
    probes = probes_by_name()
    watchable = [*(name for name, probe in probes.items() if probe.watchable), *data.benchmarks]
    for name in config.watched:
        if name not in watchable:
            hint = nearest(name, watchable)
            raise UserError(f"watched: {name}: is none of the run's test sets; {hint}")
    for name in config.probes:
        if probes[name].masks and config.dataset not in dataset.SETS and not config.masks:
            raise UserError(
                f"probes: {name}: needs images with masks; give masks: a folder with images/ and "
                f"masks/ in train/ and val/, one in Pascal VOC's layout, or shapes"
            )


def check_fingerprint(recorded: FingerprintRecord, found: dict[str, Any], where: Path) -> None:
    """Reject images that differ from those that the run has seen.

    Errors: `UserError` showing what differs in the first set that differs.
    """
    then: dict[str, Any] = {**recorded, **recorded.get("benchmarks", {})}
    now = {**found, **found.get("benchmarks", {})}
    for name in [name for name in then if name in now and name != "benchmarks"]:
        differing = differences(then[name], now[name])
        if differing:
            what = "initial weights" if name == "init_checkpoint" else f"{name} images"
            out = f"give other images another name than {name!r}"
            if name not in recorded.get("benchmarks", {}):
                out = "remove the folder to train on what is there now"
            raise UserError(
                f"{where}: the {what} have changed since this run saw them: then {differing}, now "
                f"{ {key: now[name][key] for key in differing} }; its numbers belong to what was "
                f"there; {out}"
            )


def data_folder(config: RunConfig) -> Path:
    """Return the folder of a data set: `data_dir`, else $DENSEVIT_DATA/DATASET.

    The built-in set falls back to the user's cache. Errors: `UserError` if neither is set.
    """
    if config.data_dir:
        return resolved(config.data_dir, "data_dir")
    root = os.environ.get("DENSEVIT_DATA")
    if root:
        return Path(root).expanduser().absolute() / config.dataset
    if config.dataset in dataset.SETS:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(cache).expanduser() / "densevit" / config.dataset
    raise UserError(
        f"data_dir: {config.dataset} has no folder; give data_dir (a folder with train/ and val/), "
        f"or set $DENSEVIT_DATA to a folder that holds {config.dataset}/"
    )


@dataclass(frozen=True)
class DrawnImages:
    """A split of a built-in set; it is drawn (once, to disk) when its first image is needed."""

    name: str  # of the data set
    split: str
    size: int
    folder: Path
    classes: tuple[str, ...] = dataset.CLASSES

    @cached_property
    def drawn(self) -> dataset.Split:
        try:
            return dataset.load(self.split, self.size, self.folder, name=self.name)
        except (ValueError, OSError) as error:
            raise UserError(f"{self.name}: {error}") from None

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"{self.split}-{index}" for index in range(len(self)))

    @cached_property
    def labels(self) -> Labels:
        labels = np.array(self.drawn.labels)  # writable, as torch wants it
        return labels if dataset.SETS[self.name].multilabel else labels.tolist()

    def __len__(self) -> int:
        return dataset.SETS[self.name].counts[self.split]

    def image(self, index: int) -> LazyImage:
        return LazyImage(
            self.ids[index], Image.fromarray(self.drawn.images[index]), (self.size,) * 2
        )

    def fingerprint(self) -> dict[str, object]:
        """Return the drawing version and sizes, which determine every pixel."""
        version = dataset.SETS[self.name].version
        return {self.name: version, "size": self.size, "images": len(self)}


def _open_drawn(config: RunConfig, size: int) -> Data:
    drawn = dataset.SETS[config.dataset]
    if size < drawn.smallest:
        raise UserError(
            f"model_kwargs: img_size {size}: the data set {drawn.name} is drawn from "
            f"{drawn.smallest} up"
        )
    folder = data_folder(config)
    train, *tests = (DrawnImages(drawn.name, split, size, folder) for split in drawn.counts)
    val, *shifted = (plain_set(images.split, images) for images in tests)
    return Data(train, val, {test_set.name: test_set for test_set in shifted})


def _open_stored(config: RunConfig) -> Data:
    source = f"{config.dataset}: data_dir"
    if config.unlabelled:
        return Data(open_unlabelled(data_folder(config), source), None, {})
    train, val = open_splits(data_folder(config), source, config.label_column)
    return Data(train, val, {})


def open_splits(
    folder: Path, source: str, label_column: str | None = None
) -> tuple[StoredImages, TestSet]:
    """Open train and val of a folder; `label_column` is that of a Hugging Face data set.

    Errors: `UserError` beginning with `source`, also for a train of one class.
    """
    if not folder.is_dir():
        fault = "is a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{source}: {folder}: {fault}; give one with train/ and val/")
    train = _open(folder, "train", source, label_column)
    val = _open(folder, "val", source, label_column)
    check_several(train, train.classes, source)
    return train, by_output("val", val, train.classes, source)


def _open(
    folder: Path, split: Literal["train", "val"], source: str, label_column: str | None
) -> StoredImages:
    """Open a split: SPLIT/ with class folders or tar files, SPLIT.tar, or Hugging Face's."""
    if is_hugging_face(folder):
        return open_hugging_face(folder, split, source, label_column)
    archive = next((path for path in tar_paths(folder, split) if path.is_file()), None)
    return open_images(archive or folder / split, source, label_column)
