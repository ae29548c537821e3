"""The embedded data set `shapes`: ten classes that only the shape of an object tells.

Drawn from a seed, without a download: a training and a validation split, and five shifted test
sets in the spirit of ImageNet-A, -R, -V2, Stylized-ImageNet and ImageNet-Sketch. Each image has a
segmentation mask. Colours, textures, grounds and areas do not depend on the class.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from densevit.data.names import SHIFTED
from densevit.data.shapes_draw import Recipe, paint
from densevit.rundir import sync_folder

# A change of any drawing raises it: stored pictures of another version are then not used.
VERSION = 1

CLASSES = (
    "disk",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "crescent",
    "heart",
    "arrow",
    "hourglass",
)


# The order is part of the drawing: a split's number is in the key of its random numbers.
SPLITS = ("train", "val", *SHIFTED)

COUNTS = {"train": 2400, "val": 600, **dict.fromkeys(SHIFTED, 600)}

SMALLEST = 32

# Easy enough for a small model to learn in less than a minute: the object is large, light on dark
# and near the middle. The shifted sets take that away, each in its own direction.
_PLAIN = Recipe(
    style="photo",
    area=(0.19, 0.33),
    turn=10,
    spread=0.5,
    contrast=(0.5, 0.64),
    light=1.0,
    texture=(0.03, 0.1),
    clutter=(1, 3),
    noise=0.02,
)

_RECIPES = {
    "train": _PLAIN,
    "val": _PLAIN,
    "shapes-a": replace(
        _PLAIN,
        area=(0.10, 0.20),
        turn=30,
        spread=0.9,
        overhang=0.05,
        contrast=(0.3, 0.5),
        light=0.9,
        texture=(0.08, 0.2),
        clutter=(4, 8),
        cover=(1, 3),
        noise=0.04,
    ),
    "shapes-r": replace(_PLAIN, style="rendition", contrast=(0.35, 0.6), light=0.7, noise=0.0),
    "shapes-v2": replace(
        _PLAIN,
        area=(0.17, 0.31),
        turn=14,
        spread=0.65,
        contrast=(0.45, 0.62),
        texture=(0.04, 0.12),
        clutter=(1, 4),
        noise=0.025,
    ),
    "shapes-stylized": replace(
        _PLAIN, style="stylized", contrast=(0.25, 0.45), light=0.85, texture=(0.2, 0.4)
    ),
    "shapes-sketch": replace(_PLAIN, style="sketch", area=(0.2, 0.34)),
}

# Longer than drawing takes: how old another machine's unfinished folder is when it counts as left.
_ABANDONED_S = 6 * 3600


@dataclass(frozen=True)
class Drawn:
    """One picture: image uint8 (S, S, 3), mask uint8 (S, S), label an index of `CLASSES`.

    The mask is label + 1 on the visible pixels of the object and 0 elsewhere.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int


@dataclass(frozen=True)
class Split:
    """A whole split, read-only: images uint8 (n, S, S, 3), masks uint8 (n, S, S), labels (n,).

    All three are memory-mapped; the labels are int64.
    """

    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


def draw(split: str, index: int, size: int, seed: int = 0) -> Drawn:
    """Draws one picture of a split; the same arguments give the same bytes, in any order.

    That holds for one version of numpy and of Pillow; another one may round an edge differently.
    An index may be beyond `COUNTS`: ten successive ones from a multiple of ten hold each class
    once. Raises ValueError for an unknown split, a size below 32, a negative index or seed.
    """
    _check(split, size, seed)
    if index < 0:
        raise ValueError(f"shapes: the index is {index}; it is 0 or more")
    # The classes of ten successive pictures are mixed, and differently from the next ten.
    label = (7 * index + 3 * (index // 10)) % 10
    key = SeedSequence([seed, SPLITS.index(split), index])
    image, visible = paint(Generator(PCG64(key)), CLASSES[label], _RECIPES[split], size)
    return Drawn(image, visible * np.uint8(label + 1), label)


def load(split: str, size: int, folder: Path, seed: int = 0) -> Split:
    """The split from `folder`, drawn there first where it is not yet stored.

    Several processes may ask at once: one draws, the others wait for it. Raises ValueError as
    `draw` does and for stored files that do not hold the split, OSError where the disk fails.
    """
    _check(split, size, seed)
    home = Path(folder) / f"v{VERSION}-{size}px-seed{seed}"
    if not (home / split).is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / f"{split}.lock"):
            # Looked at once more: it may have been drawn while this process waited.
            if not (home / split).is_dir():
                _store(split, size, home, seed)
    return _open(home / split, COUNTS[split], size)


def _check(split: str, size: int, seed: int) -> None:
    if split not in SPLITS:
        raise ValueError(f"shapes: no split {split!r}; the splits are {', '.join(SPLITS)}")
    if size < SMALLEST:
        raise ValueError(f"shapes: the image size is {size}; it is {SMALLEST} or more")
    if seed < 0:
        raise ValueError(f"shapes: the seed is {seed}; it is 0 or more")


def _open(folder: Path, count: int, size: int) -> Split:
    shapes = {"images": (count, size, size, 3), "masks": (count, size, size), "labels": (count,)}
    arrays = {}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        kind = np.int64 if name == "labels" else np.uint8
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (FileNotFoundError, EOFError, ValueError) as error:
            raise ValueError(f"{path} is missing or damaged: remove {folder}") from error
        if arrays[name].shape != shape or arrays[name].dtype != kind:
            raise ValueError(f"{path} does not hold {shape} of {kind.__name__}: remove {folder}")
    return Split(**arrays)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The file stays: removing it would let two processes hold locks on two files of one name.
    # A process that is killed gives up its lock, so that no one waits for the dead.
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _store(split: str, size: int, home: Path, seed: int) -> None:
    """Draws a split beside its place and moves it there when it is whole and on the disk."""
    own = f".{split}.tmp-{os.uname().nodename}@"
    _sweep(home, split, own)
    folder = home / f"{own}{secrets.token_hex(6)}"
    folder.mkdir()
    try:
        _write(folder, split, size, seed)
        sync_folder(folder)
        try:
            folder.rename(home / split)
        except OSError:
            # Where locks do not reach over machines, another one may have been first.
            if not (home / split).is_dir():
                raise
        sync_folder(home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(home: Path, split: str, own: str) -> None:
    """Removes what killed processes left; called with the lock held, so none is being written.

    Except that a shared disk may not carry locks to other machines: theirs must be old as well.
    """
    for left in home.glob(f".{split}.tmp-*"):
        with contextlib.suppress(FileNotFoundError):
            age = time.time() - left.stat().st_mtime
            if left.name.startswith(own) or age > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def _write(folder: Path, split: str, size: int, seed: int) -> None:
    # One picture after another and by write(), not by a mapping: memory stays small, and a full
    # disk is an OSError instead of a SIGBUS.
    count = COUNTS[split]
    labels = np.empty(count, dtype=np.int64)
    with (folder / "images.npy").open("wb") as images, (folder / "masks.npy").open("wb") as masks:
        _header(images, (count, size, size, 3))
        _header(masks, (count, size, size))
        for index in range(count):
            drawn = draw(split, index, size, seed)
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
