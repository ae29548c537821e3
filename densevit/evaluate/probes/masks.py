"""Images with segmentation masks: found, read and checked. Imports no torch.

Three layouts are supported:

- a folder with `images/` and `masks/`, or with train/ and val/ that each hold these. A mask is a
  PNG with its image's name; the palette index or gray value is the class, or void. `classes.txt`,
  beside `images/` or above train/ and val/, names the classes, one per line, from 0 on without the
  void values. Without it the classes are the numbers up to the highest value in any mask; all masks
  are then read, and every number must occur.
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

from densevit.config.run_config import RunConfig
from densevit.data.check_contents import check_apart
from densevit.data.datasets import DrawnImages, data_folder
from densevit.data.image import Images, LazyImage, root_of
from densevit.data.image_files import check_names, has_image_suffix, visible
from densevit.data.image_folder import FolderImages
from densevit.data.open_benchmark import resolved
from densevit.data.shapes import dataset
from densevit.evaluate.probes.mask_values import (
    UNKNOWN,
    VOID,
    Mask,
    MaskClasses,
    check_occurring,
    check_several_classes,
    named_classes,
    numbered_classes,
    read_values,
    voc_classes,
    void_hint,
)
from densevit.utils.errors import UserError, nearest

DEFAULT_VOID = (VOID,)


@dataclass(frozen=True)
class MaskedImages:
    """Images with a class per pixel; they work wherever `Images` do, each with label 0.

    `mask` returns the mask (H, W) uint8 of the image at an index, at the image's size: indices of
    `classes`, or `VOID`. It raises `UserError` that names the file and its fault. `void` holds the
    values of void pixels in the files.
    """

    images: Images
    classes: tuple[str, ...]
    mask: Callable[[int], Mask]
    void: tuple[int, ...] = DEFAULT_VOID

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
        other = {} if self.void == DEFAULT_VOID else {"void": list(self.void)}
        return {**self.images.fingerprint(), **other}


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
    void = tuple(config.void)
    train, test = (
        open_masks(spec, split, size=size, drawn=drawn, void=void) for split in ("train", "val")
    )
    if train.classes != test.classes:
        raise UserError(f"masks: {spec}: train and val do not name the same classes")
    return train, test


def open_masks(
    spec: str | Path, split: str | None = None, *, size: int = 224, drawn: Path | None = None,
    void: tuple[int, ...] = DEFAULT_VOID,
) -> MaskedImages:  # fmt: skip
    """Find images with masks; mask contents are checked when they are read (see `check_masks`).

    Args:
        spec: a folder in one of the layouts above, or the name of a drawn set.
        split: train or val (VOC and shapes have more); None for a folder that itself holds images/.
        size, drawn: only for a drawn set: the side of its images, and the folder that stores them.
        void: the values of pixels that have no class; they are neither trained on nor scored.

    Errors: `UserError` for a folder of unknown layout, a missing split, a mask without its image,
    an image without its mask, and less than two classes.
    """
    if str(spec) in dataset.SETS:
        if void != DEFAULT_VOID:
            raise UserError(f"void: {list(void)}: is for masks in files; {spec} is drawn")
        return _open_drawn(str(spec), split, size, drawn)
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise UserError(f"masks: {folder}: no such folder")
    if (folder / "SegmentationClass").is_dir():
        root, classes, pairs = folder, voc_classes(void), _listed(folder, split)
    else:
        root = folder / split if split else folder
        pairs = _paired(root)
        classes = _classes(root, void)
    check_several_classes(classes, root)
    ids, files = zip(*pairs, strict=True)
    check_names(ids, root, "masks")
    images = FolderImages(root, classes.names, ids, (0,) * len(ids))
    return MaskedImages(images, classes.names, partial(_mask, images, files, classes), void)


def check_masks(images: MaskedImages, *, fitted: bool = False) -> None:
    """Read every mask once, so that a bad one is reported before long work begins.

    `fitted`: a probe is to be fitted to them. Errors: `UserError` for the first unusable mask, if
    less than two classes are labelled, and if a class of fitted masks is not.
    """
    counted: set[int] = set()
    for index in range(len(images)):
        counted.update(np.unique(images.mask(index)).tolist())
    where = str(root_of(images.images) or "shapes")
    check_occurring(counted - {VOID}, images.classes, images.void, where, fitted)


def check_mask_splits(train: MaskedImages, test: MaskedImages) -> None:
    """Check the masks that a probe is fitted to and tested on, and their images.

    Errors: `UserError` as `check_masks`, and for damaged and shared images.
    """
    check_masks(train, fitted=True)
    check_masks(test)
    check_apart(train.images, test.images, "masks")


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
    found, files = [e for e in visible(images) if has_image_suffix(e.name)], _pngs(masks)
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
        raise UserError(f"masks: {images}: holds no images (.jpg, .png, ...)")
    return [(f"images/{path.name}", mask_of[stem]) for stem, path in image_of.items()]


def _pngs(folder: Path) -> list[Path]:
    return [each for each in visible(folder) if each.suffix.lower() == ".png"]


def _classes(root: Path, void: tuple[int, ...]) -> MaskClasses:
    """Return the classes in classes.txt, else the values in any mask of train/ and val/."""
    home = root.parent if root.name in ("train", "val") else root
    folders = dict.fromkeys([root, home / "train", home / "val"])
    masks = (
        file for each in folders if (each / "masks").is_dir() for file in _pngs(each / "masks")
    )
    for file in (root / "classes.txt", home / "classes.txt"):
        if file.is_file():
            return named_classes(file, void, masks)
    return numbered_classes(home, void, masks)


def _mask(images: FolderImages, files: Sequence[Path], classes: MaskClasses, index: int) -> Mask:
    file, count = files[index], len(classes.names)
    values = read_values(file)
    expected, found = images.image(index).size, values.shape[::-1]
    if found != expected:
        raise UserError(
            f"masks: {file}: is {found[0]}x{found[1]} pixels, its image "
            f"{images.ids[index]} {expected[0]}x{expected[1]}"
        )
    of_class = classes.table()[values]
    if (of_class == UNKNOWN).any():
        wrong = values[of_class == UNKNOWN][0]
        raise UserError(
            f"masks: {file}: holds the value {wrong}, beyond the {count} classes "
            f"({classes.values[0]} to {classes.values[-1]}); {void_hint(classes.void)}"
        )
    return of_class.astype(np.uint8)
