"""A picture as upright RGB, read in two steps: its size from the header, then its pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from PIL import Image, ImageOps

from densevit.errors import UserError

_ORIENTATION = 0x0112  # the EXIF tag
DEEP = ("F", "I")  # modes that `check_depth` looks into
_TURNED = (5, 6, 7, 8)  # its values that exchange width and height


@dataclass(frozen=True)
class Picture:
    """A picture whose pixels need not be decoded yet.

    `name` is the file's, for errors; `size` is width and height in pixels, upright.
    """

    name: str
    encoded: Image.Image
    size: tuple[int, int]

    def decode(self, reduction: int = 1) -> Image.Image:
        """The picture as upright RGB: EXIF orientation applied; grey, palette, CMYK converted.

        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (`reduction`), for a fraction of the
        time; other formats, and smaller sizes than 1, come whole. Call it once.

        Errors: `UserError` naming the file if it is truncated, or has values of another range than
        8 or 16 bits.
        """
        image = self.encoded
        with _naming(self.name):
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
            image.load()
            check_depth(image)
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "P" or (image.mode in ("L", "RGB") and "transparency" in image.info):
                image = image.convert("RGBA")
            if image.mode in ("I;16", "I;16B", "I;16L", "I"):
                image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
            return image if image.mode == "RGB" else image.convert("RGB")


def check_depth(image: Image.Image) -> None:
    """Errors: `ValueError` for values that nobody can say the brightness of."""
    if image.mode == "F":
        raise ValueError("holds floating-point values, wanted 8 or 16 bits")
    if image.mode == "I":  # 32 bits, as which 16 may be read
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise ValueError(f"holds values of 32 bits, {low} to {high}, wanted 8 or 16 bits")


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


def read_picture(name: str, read: Callable[[], bytes]) -> Picture:
    """A picture from the bytes of a file.

    Errors: `UserError` naming the file if it is missing or no picture.
    """
    with _naming(name):
        image = Image.open(io.BytesIO(read()))
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        width, height = image.size
        return Picture(name, image, (height, width) if turned else (width, height))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: cannot be read as an image: {error}") from None
