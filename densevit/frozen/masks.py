"""Pictures with masks that give each pixel a class: found, read and checked. Imports no torch.

Three layouts are known:

- a folder with `images/` and `masks/`, or with train/ and val/ that each hold these. A mask is a
  PNG of its picture's name whose palette index or grey value is the class. `classes.txt`, beside
  `images/` or above train/ and val/, names the classes, one a line, from 0 on; without it they are
  the numbers up to the highest in any mask, all of which are then read and must occur.
- Pascal VOC: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/SPLIT.txt.
- `shapes`, the drawn set: the background and the ten classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from densevit.data import shapes
from densevit.data.folders import SUFFIXES, FolderImages
from densevit.data.pictures import Images, Picture, read_picture
from densevit.data.sources import DrawnImages
from densevit.errors import UserError, nearest

VOID = 255  # a pixel without a class, in what `MaskedImages.mask` gives

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class MaskedImages:
    """Pictures whose pixels have classes; they go wherever `Images` do, each with the label 0.

    `mask` gives the mask (H, W) uint8 of a picture by its place, at the picture's size: indices of
    `classes`, or `VOID`. It raises `UserError` naming the file and what is wrong with it.
    """

    pictures: Images
    classes: tuple[str, ...]
    mask: Callable[[int], np.ndarray]

    @property
    def ids(self) -> Sequence[str]:
        return self.pictures.ids

    @cached_property
    def labels(self) -> Sequence[int]:
        return (0,) * len(self)

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, index: int) -> Picture:
        return self.pictures.picture(index)

    def fingerprint(self) -> dict[str, object]:
        return self.pictures.fingerprint()


def open_masks(
    spec: str | Path,
    split: str | None = None,
    *,
    source: str,
    void: int = VOID,
    size: int = 224,
    drawn: Path | None = None,
) -> MaskedImages:
    """Find pictures with masks; what a mask holds is checked when it is read (see `check_masks`).

    Args:
        spec: a folder in one of the layouts above, or "shapes".
        split: train or val (VOC and shapes have more); None for a folder that itself holds images/.
        source: begins the error messages.
        void: the value of pixels without a class, in files.
        size, drawn: of "shapes" alone: the side of its pictures, and the folder that stores them.

    Errors: `UserError` for a folder of no known layout, a split that is not there, a mask without
    its picture, a picture without its mask, and a `void` that is a class.
    """
    if str(spec) == "shapes":
        return _open_drawn(split, size, drawn, source)
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise UserError(f"{source}: {folder}: no such folder")
    if (folder / "SegmentationClass").is_dir():
        root, classes, pairs = folder, VOC, _listed(folder, split, source)
    else:
        root = folder / split if split else folder
        pairs = _paired(root, source)
        classes = _classes(root, source, void)
    if void < len(classes):
        raise UserError(f"{source}: void: {void} is the value of the class {classes[void]}")
    ids, files = zip(*pairs, strict=True)
    pictures = FolderImages(root, classes, ids, (0,) * len(ids))
    return MaskedImages(pictures, classes, partial(_mask, pictures, files, source, void))


def check_masks(images: MaskedImages) -> None:
    """Read every mask once, so that a bad one is told before long work begins.

    Errors: `UserError` of the first one that cannot be used, and if all pixels are void.
    """
    counted = False
    for index in range(len(images)):
        counted |= bool((images.mask(index) != VOID).any())
    if not counted:
        where = getattr(images.pictures, "root", "shapes")
        raise UserError(f"{where}: the masks of all {len(images)} pictures are void everywhere")


def _open_drawn(split: str | None, size: int, drawn: Path | None, source: str) -> MaskedImages:
    if drawn is None:
        raise ValueError("shapes: the folder where it is stored is wanted (drawn)")
    if split not in shapes.SPLITS:
        raise UserError(f"{source}: shapes: no split {split}; {nearest(split, shapes.SPLITS)}")
    pictures = DrawnImages(split, size, drawn)
    return MaskedImages(pictures, ("background", *shapes.CLASSES), partial(_drawn_mask, pictures))


def _drawn_mask(pictures: DrawnImages, index: int) -> np.ndarray:
    return np.asarray(pictures.drawn.masks[index])


def _listed(folder: Path, split: str | None, source: str) -> list[tuple[str, Path]]:
    """Pictures (relative to the folder) and masks of a split of Pascal VOC."""
    lists = folder / "ImageSets" / "Segmentation"
    file = lists / f"{split}.txt"
    if not file.is_file():
        raise UserError(f"{source}: {file}: no such split of Pascal VOC (wanted train or val)")
    pairs = []
    for stem in file.read_text().split():
        picture, mask = f"JPEGImages/{stem}.jpg", folder / "SegmentationClass" / f"{stem}.png"
        if not mask.is_file():
            raise UserError(f"{source}: {mask}: is missing, but {file} lists it")
        if not (folder / picture).is_file():
            raise UserError(f"{source}: {mask}: has no picture {folder / picture}")
        pairs.append((picture, mask))
    if not pairs:
        raise UserError(f"{source}: {file}: lists no pictures")
    return pairs


def _paired(root: Path, source: str) -> list[tuple[str, Path]]:
    """Pictures (relative to the folder) and masks of a folder with images/ and masks/."""
    images, masks = root / "images", root / "masks"
    if not (images.is_dir() and masks.is_dir()):
        raise UserError(
            f"{source}: {root}: holds no images/ and masks/ (wanted: these, in train/ and val/ "
            f"where it is split, or Pascal VOC's JPEGImages/ and SegmentationClass/)"
        )
    found, files = _files(images, SUFFIXES), _files(masks, frozenset({".png"}))
    for stem, count in Counter(path.stem for path in found).items():
        if count > 1:
            raise UserError(f"{source}: {images}: {count} pictures are called {stem}")
    pictures, by_stem = {p.stem: p for p in found}, {f.stem: f for f in files}
    for stem, file in by_stem.items():
        if stem not in pictures:
            raise UserError(f"{source}: {file}: has no picture in {images}")
    for stem, picture in pictures.items():
        if stem not in by_stem:
            raise UserError(f"{source}: {picture}: has no mask {masks / stem}.png")
    if not pictures:
        raise UserError(f"{source}: {images}: holds no images ({' '.join(sorted(SUFFIXES))})")
    return [(f"images/{path.name}", by_stem[stem]) for stem, path in pictures.items()]


def _files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    entries = sorted(folder.iterdir())
    return [e for e in entries if e.suffix.lower() in suffixes and e.name[0] != "."]


def _classes(root: Path, source: str, void: int) -> tuple[str, ...]:
    """The names in classes.txt, else the numbers up to the highest value in any split's masks."""
    home = root.parent if root.name in ("train", "val") else root
    for file in (root / "classes.txt", home / "classes.txt"):
        if file.is_file():
            names = [line.strip() for line in file.read_text("utf-8").rstrip().splitlines()]
            if "" in names or len(set(names)) < len(names):
                raise UserError(f"{source}: {file}: wanted a name a line, each only once")
            return tuple(names)
    found: dict[int, Path] = {0: root}  # each value and the first file that has it
    for folder in dict.fromkeys([root, home / "train", home / "val"]):
        if (folder / "masks").is_dir():
            for file in _files(folder / "masks", frozenset({".png"})):
                for value in np.unique(_read(file, source)).tolist():
                    found.setdefault(value, file)
    found.pop(void, None)
    absent = next((n for n in range(max(found)) if n not in found), None)
    if absent is not None:  # one stray pixel would make a class of its own, and more between
        last = max(found)
        raise UserError(
            f"{source}: {found[last]}: holds the value {last}, but no mask holds {absent}: name "
            f"the classes in {home / 'classes.txt'}, one a line, from 0 on"
        )
    return tuple(str(number) for number in range(max(found) + 1))


def _mask(
    pictures: FolderImages, files: Sequence[Path], source: str, void: int, index: int
) -> np.ndarray:
    file, known = files[index], len(pictures.classes)
    values = _read(file, source)
    wanted, found = pictures.picture(index).size, values.shape[::-1]
    if found != wanted:
        raise UserError(
            f"{source}: {file}: is {found[0]}x{found[1]} pixels, its picture "
            f"{pictures.ids[index]} {wanted[0]}x{wanted[1]}"
        )
    wrong = values[(values >= known) & (values != void)]
    if wrong.size:
        raise UserError(
            f"{source}: {file}: holds the value {wrong[0]}, beyond the {known} classes "
            f"(0 to {known - 1}, and {void} for void)"
        )
    return np.where(values == void, np.uint8(VOID), values)


def _read(file: Path, source: str) -> np.ndarray:
    """The values (H, W) uint8 as the file has them."""
    name = f"{source}: {file}"
    image = read_picture(name, file.read_bytes).encoded
    if image.format != "PNG":
        raise UserError(f"{name}: is {image.format}, wanted PNG (others blur the values)")
    depth = file.read_bytes()[24]  # bits of a sample: a PNG begins with its IHDR chunk
    if depth == 16:
        raise UserError(f"{name}: has 16 bits a sample, wanted at most 8: a class is 0 to 255")
    if image.mode not in ("1", "L", "P"):
        raise UserError(f"{name}: is {image.mode}, wanted grey or palette: a class a pixel")
    try:
        values = np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as an image: {error}") from None
    if image.mode == "L" and depth < 8:
        values //= 255 // (2**depth - 1)  # Pillow spreads the values of 2 and 4 bits over 0 to 255
    return values
