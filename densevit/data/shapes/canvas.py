"""Draw filled and stroked outlines on a pixel grid."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

Range = tuple[float, float]
MARGIN = 0.02  # between object and border, as a fraction of the side


@dataclass(frozen=True)
class Recipe:
    """The drawing parameters of a split; a pair of floats is the range of a uniform draw."""

    style: str  # a key of STYLES
    area: Range = (0.15, 0.30)  # of the object, as a fraction of the image
    turn: float = 20.0  # degrees to either side
    spread: float = 1.0  # fraction of the free room from which the object's position is drawn
    overhang: float = 0.0  # fraction of the object's extent that may be outside the image
    detail: float = 1.0  # factor of the sizes of lines, patterns and clutter
    contrast: Range = (0.30, 0.55)  # lightness difference of object and background
    light: float = 0.5  # probability that the object is the lighter one
    texture: Range = (0.05, 0.18)  # lightness range within a surface
    clutter: tuple[int, int] = (2, 5)  # blobs and strokes behind the object
    cover: tuple[int, int] = (0, 0)  # blobs and strokes in front of it
    soft: Range = (0.0, 0.05)  # width of the object's edge
    shadow: float = 0.0  # darkness of the object's shadow on what is behind it
    noise: float = 0.03


def _finer(size: int) -> int:
    return 4 if size <= 128 else 2


def _points(loop: np.ndarray, scale: int) -> list[tuple[int, int]]:
    # Integers: rounding differences between platforms do not move an edge.
    return [(int(x), int(y)) for x, y in np.floor(loop * scale).tolist()]


def _reduced(canvas: Image.Image, size: int) -> np.ndarray:
    return np.asarray(canvas.reduce(canvas.width // size), dtype=np.float64) / 255


def fill(loops: Sequence[np.ndarray], size: int, soft: float = 0.0) -> np.ndarray:
    """Return the outline's coverage of each pixel, (S, S) in [0, 1], with a blurred edge."""
    scale = size * _finer(size)
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    for number, loop in enumerate(loops):
        pen.polygon(_points(loop, scale), fill=0 if number else 255)
    if soft:
        canvas = canvas.filter(ImageFilter.BoxBlur(soft * scale))
    return _reduced(canvas, size)


def stroke(
    lines: Sequence[np.ndarray], width: float, size: int, closed: bool = False
) -> np.ndarray:
    """Return the coverage of each pixel by strokes along the points, (S, S) in [0, 1]."""
    scale = size * _finer(size)
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    for line in lines:
        points = _points(line, scale)
        if closed:  # two more points, so that the joint at the start is drawn
            points += points[:2]
        pen.line(points, fill=255, width=max(1, round(width * scale)), joint="curve")
    return _reduced(canvas, size)


def blend(under: np.ndarray, over: np.ndarray, cover: np.ndarray) -> np.ndarray:
    blended: np.ndarray = under + (over - under) * cover[..., None]
    return blended


def lerp(u: float, bounds: Range) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(u)


def random_color(rng: Generator, lightness: float, strength: float = 0.35) -> np.ndarray:
    """Return a random color, (3,), whose mean is near the given lightness."""
    hue = rng.random(3)
    color: np.ndarray = np.clip(lightness + strength * (hue - hue.mean()) * 2, 0, 1)
    return color


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(size) + 0.5) / size
    return at[None, :], at[:, None]
