"""Images with segmentation masks: found, read and checked. Imports no torch.

Three layouts are supported:

- a folder with `images/` and `masks/`, or with train/ and val/ that each hold these. A mask is a
  PNG with its image's name; the palette index or gray value is the class. `classes.txt`, beside
  `images/` or above train/ and val/, names the classes, one per line, from 0 on. Without it the
  classes are the numbers up to the highest value in any mask; all masks are then read, and every
  number must occur.
- Pascal VOC: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/SPLIT.txt.
- `shapes` and `shapes-many`, the drawn sets: the background and the ten classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densevit.config.run_config import RunConfig
from densevit.data.datasets import DrawnImages, data_folder
from densevit.data.image import Images, LazyImage, read_image, root_of
from densevit.data.image_folder import SUFFIXES, FolderImages
from densevit.data.open_benchmark import resolved
from densevit.data.shapes import dataset
from densevit.utils.errors import UserError, nearest

Mask = NDArray[np.uint8]  # (H, W)
VOID = 255  # the value of a pixel without a class

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class MaskedImages:
    """Images with a class per pixel; they work wherever `Images` do, each with label 0.

    `mask` returns the mask (H, W) uint8 of the image at an index, at the image's size: indices of
    `classes`, or `VOID`. It raises `UserError` that names the file and its fault.
    """

    images: Images
    classes: tuple[str, ...]
    mask: Callable[[int], Mask]

    @property
    def ids(self) -> Sequence[str]:
        return self.images.ids

    @cached_property
    def labels(self) -> Sequence[int]:
        return (0,) * len(self)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> LazyImage:
        return self.images.image(index)

    def fingerprint(self) -> dict[str, object]:
        return self.images.fingerprint()


def masked_sets(config: RunConfig, size: int) -> tuple[MaskedImages, MaskedImages]:
    """Open the images with masks that probes are fitted to, and those that they are tested on.

    Errors: `UserError` if they are not found, or if their classes differ.
    """
    spec, drawn = config.masks or config.dataset, None
    if spec in dataset.SETS:
        own = config.dataset == spec  # else data_dir belongs to another data set
        elsewhere = config.model_copy(update={"dataset": spec, "data_dir": None})
        drawn = data_folder(config if own else elsewhere)
    else:
        spec = str(resolved(spec, "masks"))
    train, test = (open_masks(spec, split, size=size, drawn=drawn) for split in ("train", "val"))
    if train.classes != test.classes:
        raise UserError(f"masks: {spec}: train and val do not name the same classes")
    return train, test


def open_masks(
    spec: str | Path, split: str | None = None, *, size: int = 224, drawn: Path | None = None
) -> MaskedImages:
    """Find images with masks; mask contents are checked when they are read (see `check_masks`).

    Args:
        spec: a folder in one of the layouts above, or the name of a drawn set.
        split: train or val (VOC and shapes have more); None for a folder that itself holds images/.
        size, drawn: only for a drawn set: the side of its images, and the folder that stores them.

    Errors: `UserError` for a folder of unknown layout, a missing split, a mask without its image,
    and an image without its mask.
    """
    if str(spec) in dataset.SETS:
        return _open_drawn(str(spec), split, size, drawn)
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise UserError(f"masks: {folder}: no such folder")
    classes: tuple[str, ...]
    if (folder / "SegmentationClass").is_dir():
        root, classes, pairs = folder, VOC, _listed(folder, split)
    else:
        root = folder / split if split else folder
        pairs = _paired(root)
        classes = _classes(root)
    ids, files = zip(*pairs, strict=True)
    images = FolderImages(root, classes, ids, (0,) * len(ids))
    return MaskedImages(images, classes, partial(_mask, images, files))


def check_masks(images: MaskedImages) -> None:
    """Read every mask once, so that a bad one is reported before long work begins.

    Errors: `UserError` for the first unusable mask, and if all pixels are void.
    """
    counted = False
    for index in range(len(images)):
        counted |= bool((images.mask(index) != VOID).any())
    if not counted:
        raise UserError(
            f"masks: {root_of(images.images) or 'shapes'}: the masks of all {len(images)} images "
            f"are void everywhere"
        )


def _open_drawn(name: str, split: str | None, size: int, drawn: Path | None) -> MaskedImages:
    if drawn is None:
        raise ValueError(f"{name}: the folder of the drawn data set is missing")
    splits = dataset.SETS[name].counts
    if split is None or split not in splits:
        raise UserError(f"masks: {name}: no split {split}; {nearest(split, splits)}")
    images = DrawnImages(name, split, size, drawn)
    return MaskedImages(images, ("background", *dataset.CLASSES), partial(_drawn_mask, images))


def _drawn_mask(images: DrawnImages, index: int) -> Mask:
    return np.asarray(images.drawn.masks[index])


def _listed(folder: Path, split: str | None) -> list[tuple[str, Path]]:
    """List the images (relative to the folder) and masks of a Pascal VOC split."""
    lists = folder / "ImageSets" / "Segmentation"
    file = lists / f"{split}.txt"
    if not file.is_file():
        raise UserError(f"masks: {file}: no such split of Pascal VOC; it must be train or val")
    pairs = []
    for stem in file.read_text().split():
        image, mask = f"JPEGImages/{stem}.jpg", folder / "SegmentationClass" / f"{stem}.png"
        if not mask.is_file():
            raise UserError(f"masks: {mask}: is missing, but {file} lists it")
        if not (folder / image).is_file():
            raise UserError(f"masks: {mask}: has no image {folder / image}")
        pairs.append((image, mask))
    if not pairs:
        raise UserError(f"masks: {file}: lists no images")
    return pairs


def _paired(root: Path) -> list[tuple[str, Path]]:
    """List the images (relative to the folder) and masks of a folder with images/ and masks/."""
    images, masks = root / "images", root / "masks"
    if not (images.is_dir() and masks.is_dir()):
        raise UserError(
            f"masks: {root}: holds no images/ and masks/; give a folder that has them, also in "
            f"train/ and val/, or Pascal VOC's JPEGImages/ and SegmentationClass/"
        )
    found, files = _files(images, SUFFIXES), _files(masks, frozenset({".png"}))
    for stem, count in Counter(path.stem for path in found).items():
        if count > 1:
            raise UserError(f"masks: {images}: {count} images are called {stem}")
    image_of, mask_of = {p.stem: p for p in found}, {f.stem: f for f in files}
    for stem, file in mask_of.items():
        if stem not in image_of:
            raise UserError(f"masks: {file}: has no image in {images}")
    for stem, file in image_of.items():
        if stem not in mask_of:
            raise UserError(f"masks: {file}: has no mask {masks / stem}.png")
    if not found:
        raise UserError(f"masks: {images}: holds no images ({' '.join(sorted(SUFFIXES))})")
    return [(f"images/{path.name}", mask_of[stem]) for stem, path in image_of.items()]


def _files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    entries = sorted(folder.iterdir())
    return [e for e in entries if e.suffix.lower() in suffixes and e.name[0] != "."]


def _classes(root: Path) -> tuple[str, ...]:
    """Return the names in classes.txt, else the numbers up to the highest value in any mask."""
    home = root.parent if root.name in ("train", "val") else root
    for file in (root / "classes.txt", home / "classes.txt"):
        if file.is_file():
            names = [line.strip() for line in file.read_text("utf-8").rstrip().splitlines()]
            if "" in names or len(set(names)) < len(names):
                raise UserError(f"masks: {file}: must have one class name a line, each only once")
            if len(names) > VOID:
                raise UserError(f"masks: {file}: names {len(names)} classes, at most {VOID} fit")
            return tuple(names)
    found: dict[int, Path] = {0: root}  # each value and the first file that has it
    for folder in dict.fromkeys([root, home / "train", home / "val"]):
        if (folder / "masks").is_dir():
            for file in _files(folder / "masks", frozenset({".png"})):
                for value in np.unique(_read(file)).tolist():
                    found.setdefault(value, file)
    found.pop(VOID, None)
    absent = next((n for n in range(max(found)) if n not in found), None)
    if absent is not None:  # one stray pixel would add its class, and all classes below it
        last = max(found)
        raise UserError(
            f"masks: {found[last]}: holds the value {last}, but no mask holds {absent}: name "
            f"the classes in {home / 'classes.txt'}, one a line, from 0 on"
        )
    return tuple(str(number) for number in range(max(found) + 1))


def _mask(images: FolderImages, files: Sequence[Path], index: int) -> Mask:
    file, count = files[index], len(images.classes)
    values = _read(file)
    expected, found = images.image(index).size, values.shape[::-1]
    if found != expected:
        raise UserError(
            f"masks: {file}: is {found[0]}x{found[1]} pixels, its image "
            f"{images.ids[index]} {expected[0]}x{expected[1]}"
        )
    wrong = values[(values >= count) & (values != VOID)]
    if wrong.size:
        raise UserError(
            f"masks: {file}: holds the value {wrong[0]}, beyond the {count} classes "
            f"(0 to {count - 1}, and {VOID} for void)"
        )
    return values


def _read(file: Path) -> Mask:
    """Read the values (H, W) as stored in the file."""
    name = f"masks: {file}"
    image = read_image(name, file.read_bytes).encoded
    if image.format != "PNG":
        raise UserError(f"{name}: is {image.format}, must be PNG: other formats change the values")
    depth = file.read_bytes()[24]  # bits per sample: a PNG begins with its IHDR chunk
    if depth == 16:
        raise UserError(f"{name}: has 16 bits a sample, must have at most 8: a class is 0 to 255")
    if image.mode not in ("1", "L", "P"):
        raise UserError(f"{name}: is {image.mode}, must be gray or palette: a class a pixel")
    try:
        values = np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as an image: {error}") from None
    if image.mode == "L" and depth < 8:
        values //= 255 // (2**depth - 1)  # Pillow scales values of 2 and 4 bits to 0 to 255
    return values
