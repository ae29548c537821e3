"""An image as upright RGB, read in two steps: its size from the header, then its pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from densevit.utils.errors import UserError

_ORIENTATION = 0x0112  # the EXIF tag
DEEP = ("F", "I")  # modes that `check_depth` examines
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class LazyImage:
    """An image whose pixels may not be decoded yet.

    `name` is the file's, for errors; `size` is width and height in pixels, upright.
    """

    name: str
    encoded: Image.Image
    size: tuple[int, int]

    def decode(self, reduction: int = 1) -> Image.Image:
        """Return upright RGB: EXIF orientation applied; gray, palette and CMYK converted.

        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (`reduction`), in a fraction of the
        time; other formats keep their size. Call it once.

        Errors: `UserError` naming the file if it is truncated, or its values are not 8 or 16 bits.
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
        image = Image.open(io.BytesIO(read()))
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        width, height = image.size
        return LazyImage(name, image, (height, width) if turned else (width, height))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: cannot be read as an image: {error}") from None
