"""The values of mask files: which of them are classes and which are void. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from densevit.data.image import read_image
from densevit.data.image_files import some
from densevit.utils.errors import UserError

Mask = NDArray[np.uint8]  # (H, W)
VOID = 255  # marks a pixel without a class in a mask that was read, whatever its value in the file
UNKNOWN = -1

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


class MaskClasses(NamedTuple):
    """The class names and the value of each in mask files; and the `void` values."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    void: tuple[int, ...]

    def table(self) -> NDArray[np.int16]:
        """Return (256,) the class of each value: its index, `VOID` or `UNKNOWN`."""
        table = np.full(256, UNKNOWN, np.int16)
        table[list(self.void)] = VOID
        table[list(self.values)] = range(len(self.values))
        return table


def voc_classes(void: Sequence[int]) -> MaskClasses:
    """Return the classes of Pascal VOC, without those that are void."""
    kept = {value: name for value, name in enumerate(VOC) if value not in void}
    return MaskClasses(tuple(kept.values()), tuple(kept), tuple(void))


def named_classes(file: Path, void: Sequence[int], masks: Iterable[Path]) -> MaskClasses:
    """Return the classes that a file names, one a line: the values from 0 on that are not void.

    Two names may also be those of 0 and 255, if the masks hold these values alone.
    """
    names = [line.strip() for line in file.read_text("utf-8-sig").rstrip().splitlines()]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"masks: {file}: must have one class name a line, each only once")
    values = [value for value in range(256) if value not in void][:VOID]
    if len(names) > len(values):
        raise UserError(
            f"masks: {file}: names {len(names)} classes, at most {len(values)} fit beside void"
        )
    if len(names) == 2 and not {0, 255} & set(void) and set(_occurring(masks)) == {0, 255}:
        values = [0, 255]
    return MaskClasses(tuple(names), tuple(values[: len(names)]), tuple(void))


def numbered_classes(home: Path, void: Sequence[int], masks: Iterable[Path]) -> MaskClasses:
    """Return the classes of masks without names: the numbers up to the highest value in any mask.

    Each must occur, for one stray pixel would add its class and all classes below it; only 0 and
    255 may be alone.
    """
    found = {value: file for value, file in _occurring(masks).items() if value not in void}
    last = max(found, default=0)
    wanted = [value for value in range(last + 1) if value not in void]
    absent = [value for value in wanted if value not in found]
    if absent and set(found) != {0, 255} and found:
        raise UserError(
            f"masks: {found[last]}: holds the value {last}, but no mask holds {absent[0]}: name "
            f"the classes in {home / 'classes.txt'}, one a line, from 0 on; {void_hint(void)}"
        )
    values = tuple(sorted(found))
    return MaskClasses(tuple(map(str, values)), values, tuple(void))


def check_several_classes(classes: MaskClasses, where: Path) -> None:
    """Reject less than two classes, for which every mIoU is 100 %."""
    if len(classes.names) < 2:
        raise UserError(
            f"masks: {where}: its masks have {len(classes.names)} classes, must have at least 2; "
            f"{void_hint(classes.void)}"
        )


def check_occurring(
    counted: Collection[int], names: Sequence[str], void: Sequence[int], where: str, fitted: bool
) -> None:
    """Reject masks in which less than two classes are labelled or, if they are to be fitted, one
    never is; `counted` are the indices of those that occur."""
    missing = [name for index, name in enumerate(names) if index not in counted]
    if len(counted) < 2:
        only = names[next(iter(counted))] if counted else "void"
        raise UserError(
            f"masks: {where}: all pixels are {only}, so that nothing can be told apart; "
            f"{void_hint(void)}"
        )
    if fitted and missing:
        raise UserError(
            f"masks: {where}: no pixel of these training masks is of {some(missing)}, which "
            f"nothing can learn; remove the class, or add masks; {void_hint(void)}"
        )


def void_hint(void: Sequence[int]) -> str:
    """Return how to say which values are classes."""
    return f"the values that are no class are void: {list(void)} (or such as [0, 255], or [])"


def _occurring(files: Iterable[Path]) -> dict[int, Path]:
    """Return each value in some masks, with the first file that has it."""
    found: dict[int, Path] = {}
    for file in files:
        for value in np.unique(read_values(file)).tolist():
            found.setdefault(value, file)
    return found


def read_values(file: Path) -> Mask:
    """Return the values (H, W) of a mask as stored in the file."""
    name = f"masks: {file}"
    content = file.read_bytes()
    image = read_image(name, lambda: content).encoded
    if image.format != "PNG":
        raise UserError(f"{name}: is {image.format}, must be PNG: other formats change the values")
    depth = content[24]  # bits per sample: a PNG begins with its IHDR chunk
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
