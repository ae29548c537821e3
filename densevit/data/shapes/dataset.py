"""The built-in data sets `shapes` and `shapes-many`, drawn from a seed, without a download.

Images of `shapes` show one object of ten classes, those of `shapes-many` 3 to 5 of different
classes that partly hide each other. The classes differ only in shape: colors, textures, grounds and
areas do not depend on them. Each set has a training and a validation split, and five shifted test
sets modeled on ImageNet-A, -R, -V2, Stylized-ImageNet and ImageNet-Sketch. Each image has a
segmentation mask.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from densevit.config.evaluation_names import MANY_SHIFTED, SHIFTED
from densevit.data.shapes.outlines import CLASSES as CLASSES
from densevit.data.shapes.recipes import ONE
from densevit.data.shapes.scenes import paint_scene
from densevit.data.shapes.styles import paint
from densevit.utils.files import sync_folder

# Increase it when any drawing of `shapes` changes: stored images of another version are not used.
VERSION = 1

# The order is part of the drawing: a split's index seeds its random numbers.
SPLITS = ("train", "val", *SHIFTED)

COUNTS = {"train": 2400, "val": 600, **dict.fromkeys(SHIFTED, 600)}

# Age at which another machine's unfinished folder counts as abandoned; longer than drawing takes.
_ABANDONED_S = 6 * 3600


@dataclass(frozen=True)
class Drawn:
    """One image: image uint8 (S, S, 3), mask uint8 (S, S), and its label.

    The mask is an index of `CLASSES` plus 1 on the visible pixels of an object and 0 elsewhere. The
    label is the index for `shapes`; for `shapes-many` it is uint8 (10,), 1 for each class in the
    mask and 0 for the others.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int | np.ndarray


@dataclass(frozen=True)
class Split:
    """A whole split, read-only: images uint8 (n, S, S, 3), masks uint8 (n, S, S), and labels.

    All three are memory-mapped. The labels are int64 (n,) or, for `shapes-many`, uint8 (n, 10).
    """

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class DrawnSet:
    """A data set.

    version: increase it when any of its drawings changes.
    counts: the number of images of each split: train, val, then the shifted test sets.
    smallest: the smallest image size.
    multilabel: an image has several classes.
    paint: draws an image of a split, given its index, size and seed.
    """

    name: str
    version: int
    counts: Mapping[str, int]
    smallest: int
    multilabel: bool
    paint: Callable[[str, int, int, int], Drawn]


def _draw_one(split: str, index: int, size: int, seed: int) -> Drawn:
    # Shuffle the classes within each ten consecutive images, differently for each ten.
    label = (7 * index + 3 * (index // 10)) % 10
    key = SeedSequence([seed, SPLITS.index(split), index])
    image, visible = paint(Generator(PCG64(key)), CLASSES[label], ONE[split], size)
    return Drawn(image, visible * np.uint8(label + 1), label)


def _draw_scene(split: str, index: int, size: int, seed: int) -> Drawn:
    image, mask = paint_scene(split, index, size, seed)
    pixels = np.bincount(mask.ravel(), minlength=len(CLASSES) + 1)[1:]
    return Drawn(image, mask, (pixels > 0).astype(np.uint8))


SETS: Mapping[str, DrawnSet] = {
    "shapes": DrawnSet("shapes", VERSION, COUNTS, 32, False, _draw_one),
    "shapes-many": DrawnSet(
        "shapes-many",
        version=1,
        counts={"train": 6000, "val": 1000, **dict.fromkeys(MANY_SHIFTED, 600)},
        smallest=64,
        multilabel=True,
        paint=_draw_scene,
    ),
}


def draw(split: str, index: int, size: int, seed: int = 0, *, name: str = "shapes") -> Drawn:
    """Draw one image of a split; the same arguments give the same bytes, in any order.

    This holds for one version of numpy and Pillow; another may round an edge differently. An index
    may exceed the split's count. In `shapes`, any ten consecutive images from a multiple of ten
    contain each class once. Raises ValueError for an unknown set or split, a size below the set's
    smallest, a negative index or seed.
    """
    _check(name, split, size, seed)
    if index < 0:
        raise ValueError(f"{name}: the index is {index}; it is 0 or more")
    return SETS[name].paint(split, index, size, seed)


def load(split: str, size: int, folder: Path, seed: int = 0, *, name: str = "shapes") -> Split:
    """Load the split from `folder`, which holds one set; draw it there if it is not stored yet.

    Several processes may call this at once: one draws, the others wait. Raises ValueError as `draw`
    does and for stored files that do not hold the split, OSError if the disk fails.
    """
    _check(name, split, size, seed)
    home = Path(folder) / f"v{SETS[name].version}-{size}px-seed{seed}"
    if not (home / split).is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / f"{split}.lock"):
            # Check again: another process may have drawn it while this one waited.
            if not (home / split).is_dir():
                _store(SETS[name], split, size, home, seed)
    return _open(home / split, SETS[name], SETS[name].counts[split], size)


def _check(name: str, split: str, size: int, seed: int) -> None:
    if name not in SETS:
        raise ValueError(f"no drawn set {name!r}; the sets are {', '.join(SETS)}")
    counts, smallest = SETS[name].counts, SETS[name].smallest
    if split not in counts:
        raise ValueError(f"{name}: no split {split!r}; the splits are {', '.join(counts)}")
    if size < smallest:
        raise ValueError(f"{name}: the image size is {size}; it is {smallest} or more")
    if seed < 0:
        raise ValueError(f"{name}: the seed is {seed}; it is 0 or more")


def _labels(which: DrawnSet, count: int) -> np.ndarray:
    """Return the labels of `count` images, all zero."""
    if which.multilabel:
        return np.zeros((count, len(CLASSES)), dtype=np.uint8)
    return np.zeros(count, dtype=np.int64)


def _open(folder: Path, which: DrawnSet, count: int, size: int) -> Split:
    labels = _labels(which, count)
    shapes = {
        "images": (count, size, size, 3),
        "masks": (count, size, size),
        "labels": labels.shape,
    }
    arrays = {}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        kind = labels.dtype if name == "labels" else np.dtype(np.uint8)
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (FileNotFoundError, EOFError, ValueError) as error:
            raise ValueError(f"{path} is missing or damaged: remove {folder}") from error
        if arrays[name].shape != shape or arrays[name].dtype != kind:
            raise ValueError(f"{path} does not hold {shape} of {kind.name}: remove {folder}")
    return Split(**arrays)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The file stays: removing it would let two processes lock two files of the same name. The lock
    # of a killed process is released, so that nobody waits for it.
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _store(which: DrawnSet, split: str, size: int, home: Path, seed: int) -> None:
    """Draw a split to a temporary folder and rename it when it is complete and on disk."""
    own = f".{split}.tmp-{os.uname().nodename}@"
    _sweep(home, split, own)
    folder = home / f"{own}{secrets.token_hex(6)}"
    folder.mkdir()
    try:
        _write(folder, which, split, size, seed)
        sync_folder(folder)
        try:
            folder.rename(home / split)
        except OSError:
            # On a disk without locks across machines, another machine may have been first.
            if not (home / split).is_dir():
                raise
        sync_folder(home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(home: Path, split: str, own: str) -> None:
    """Remove leftovers of killed processes; the held lock ensures that none is being written.

    A shared disk may not carry locks across machines, so other machines' files must be old too.
    """
    for left in home.glob(f".{split}.tmp-*"):
        with contextlib.suppress(FileNotFoundError):
            age = time.time() - left.stat().st_mtime
            if left.name.startswith(own) or age > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def _write(folder: Path, which: DrawnSet, split: str, size: int, seed: int) -> None:
    # Image by image and with write(), not a memory map: memory stays small, and a full disk is an
    # OSError instead of a SIGBUS.
    count = which.counts[split]
    labels = _labels(which, count)
    with (folder / "images.npy").open("wb") as images, (folder / "masks.npy").open("wb") as masks:
        _header(images, (count, size, size, 3))
        _header(masks, (count, size, size))
        for index in range(count):
            drawn = draw(split, index, size, seed, name=which.name)
            images.write(drawn.image.tobytes())
            masks.write(drawn.mask.tobytes())
            labels[index] = drawn.label
        for file in (images, masks):
            file.flush()
            os.fsync(file.fileno())
    with (folder / "labels.npy").open("wb") as file:
        np.save(file, labels)
        file.flush()
        os.fsync(file.fileno())


def _header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
