"""An image as upright RGB, read in two steps: its size from the header, then its pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from densevit.utils.errors import UserError, reason_of

# Still images that Pillow decodes itself. EPS and the like would start an external program.
FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "BMP", "DIB", "GIF", "TIFF", "PPM", "QOI", "TGA",
)  # fmt: skip
ORIENTATION = 0x0112  # the EXIF tag
DEEP = ("F", "I")  # modes that `check_depth` examines
# How to make an image upright, by its EXIF orientation (EXIF 2.3, section 4.6.4); 1 is upright.
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # fmt: skip
_TURNED = (5, 6, 7, 8)  # these swap width and height


@dataclass(frozen=True)
class LazyImage:
    """An image whose pixels may not be decoded yet.

    `name` is the file's, for errors; `size` is width and height in pixels, upright; `orientation`
    is that of EXIF.
    """

    name: str
    encoded: Image.Image
    size: tuple[int, int]
    orientation: int = 1

    def decode(self, reduction: int = 1) -> Image.Image:
        """Return upright RGB: EXIF orientation applied; gray, palette and CMYK converted.

        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (`reduction`), in a fraction of the
        time; other formats keep their size. Call it once.

        Errors: `UserError` naming the file if it is truncated, or its values are not 8 or 16 bits.
        """
        with _naming(self.name):
            return upright_rgb(self.encoded, self.orientation, reduction)


def upright_rgb(image: Image.Image, orientation: int, reduction: int = 1) -> Image.Image:
    """Decode an image (see `LazyImage.decode`). Errors: those of Pillow, which may be any."""
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    image.load()
    check_depth(image)
    if orientation in _UPRIGHT:
        # Not ImageOps.exif_transpose, which rewrites all EXIF data and fails if some is bad.
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode == "P" or (image.mode in ("L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


def check_depth(image: Image.Image) -> None:
    """Raise `ValueError` for pixel values whose range is unknown."""
    if image.mode == "F":
        raise ValueError("holds floating-point values, must hold 8 or 16 bits")
    if image.mode == "I":  # Pillow may read 16 bits as 32
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"holds values of 32 bits, {low} to {high}, must hold 8 or 16 bits")


# (n,) indices of classes; or (n, C), 1 for each class of an image and else 0.
Labels = Sequence[int] | NDArray[np.uint8]


class Images(Protocol):
    """Labeled images: `ids` name them; `labels` index `classes`, or say which ones each shows."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Labels: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> LazyImage:
        """Return an image, not decoded yet."""
        ...

    def fingerprint(self) -> dict[str, object]:
        """Return the record by which a run recognizes the same images."""
        ...


def chosen_labels(labels: Labels, indices: Sequence[int]) -> NDArray[np.integer]:
    """Return the labels at some indices: (B,) or (B, C)."""
    if isinstance(labels, np.ndarray):
        return labels[np.asarray(indices, np.int64)]
    return np.array([labels[index] for index in indices], np.int64)


def root_of(images: Images) -> Path | None:
    """Return the folder or archive of the images; None for the built-in set, which has no files."""
    root: Path | None = getattr(images, "root", None)
    return root


def read_image(name: str, read: Callable[[], bytes]) -> LazyImage:
    """Return the image in the bytes of a file.

    Errors: `UserError` naming the file if it is missing or no image.
    """
    with _naming(name):
        return open_image(name, io.BytesIO(read()))


def open_header(file: BinaryIO) -> Image.Image:
    """Return an image of which only the header was read. Errors: those of Pillow."""
    return Image.open(file, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(name: str, file: BinaryIO) -> LazyImage:
    """Return the image in an open file. Errors: those of Pillow, which may be any."""
    image = open_header(file)
    orientation = image.getexif().get(ORIENTATION, 1)
    width, height = image.size
    size = (height, width) if orientation in _TURNED else (width, height)
    return LazyImage(name, image, size, orientation)


def fault_of(error: Exception) -> str:
    """Return why a file is no image, from an error of Pillow."""
    if isinstance(error, UnidentifiedImageError):
        return "is no image"
    if isinstance(error, struct.error):
        return f"damaged data: {error}"
    return getattr(error, "strerror", None) or reason_of(error)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Pillow raises anything for a damaged file
        raise UserError(f"{name}: cannot be read as an image: {fault_of(error)}") from None
