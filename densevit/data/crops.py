"""Crop images: two random crops for training, one plain view for evaluation.

Crops are cut where the image is decoded. Their color parameters are drawn at the same time and
applied to whole batches on the training device (`data.color_augment`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from densevit.data.image import LazyImage
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from timm.data.transforms_factory import create_transform  # noqa: E402

Transform = Callable[[Image.Image], Tensor]

_JITTER, _HUE = 0.4, 0.1  # of brightness, contrast and saturation; of the hue
_RATIO = (3 / 4, 4 / 3)  # of a crop's width to its height
_SIGMA = (0.1, 2.0)  # of the blur, in pixels: MoCo v2 (Chen et al. 2020)


class Recipe(NamedTuple):
    """The distribution of a view: the range of its area share, and the probability of a blur."""

    scale: tuple[float, float]
    blur: float


# View 1: random resized crop, flip, color jitter. View 2: a crop of at least a fifth of the area,
# and a Gaussian blur one time in five.
RECIPES = (Recipe((0.08, 1.0), 0.0), Recipe((0.2, 1.0), 0.2))


class Crop(NamedTuple):
    """A view of an image before its colors change.

    pixels: (S, S, 3) uint8.
    place: left, top, right and bottom of the crop in pixels of the image. A flipped view has left
        and right swapped: a point at a fraction u of the view's width is at
        left + u·(right − left) in both cases.
    color: 9 numbers: factors of brightness, contrast and saturation, the hue shift, the order of
        these four operations, and the sigma of the blur (0: none); see `data.color_augment`.
    """

    pixels: np.ndarray
    place: list[float]
    color: list[float]


def draw_view(
    recipe: Recipe, size: tuple[int, int], draws: random.Random
) -> tuple[list[float], list[float]]:
    """Draw `place` and `color` of a view of an image with a given size.

    The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip,
    ColorJitter, RandomApply and GaussianBlur. Those draw from one-element tensors, which takes more
    than a tenth of the time of decoding the image.
    """
    left, top, width, height = _draw_box(recipe.scale, size, draws)
    sides = [left, left + width]
    if draws.random() < 0.5:
        sides.reverse()
    place = [float(v) for v in (sides[0], top, sides[1], top + height)]
    factors = [draws.uniform(1 - _JITTER, 1 + _JITTER) for _ in range(3)]
    order = [0, 1, 2, 3]
    draws.shuffle(order)
    blurred = draws.random() < recipe.blur
    sigma = draws.uniform(*_SIGMA) if blurred else 0.0
    return place, [*factors, draws.uniform(-_HUE, _HUE), *map(float, order), sigma]


def _draw_box(
    scale: tuple[float, float], size: tuple[int, int], draws: random.Random
) -> tuple[int, int, int, int]:
    """Draw left, top, width and height of a crop as in Inception (Szegedy et al. 2015)."""
    width, height = size
    for _ in range(10):
        area = width * height * draws.uniform(*scale)
        ratio = math.exp(draws.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return draws.randint(0, width - w), draws.randint(0, height - h), w, h
    # No draw fits a very elongated image: take the largest center crop within the ratios.
    w = min(width, max(1, round(height * _RATIO[1])))
    h = min(height, max(1, round(width / _RATIO[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def cut_views(image: LazyImage, size: int, draws: random.Random) -> tuple[Crop, Crop]:
    """Return both views of an image, decoded once at the smallest sufficient resolution."""
    drawn = [draw_view(recipe, image.size, draws) for recipe in RECIPES]
    decoded = image.decode(_reduction([place for place, _ in drawn], size))
    scales = decoded.width / image.size[0], decoded.height / image.size[1]
    first, second = (
        Crop(_cut(decoded, place, scales, size), place, color) for place, color in drawn
    )
    return first, second


def _reduction(places: list[list[float]], size: int) -> int:
    """Return the largest JPEG reduction at which no crop must be upsampled for it."""
    smallest = min(min(abs(r - x), y - t) for x, t, r, y in places)
    return next((d for d in (8, 4, 2) if smallest >= d * size), 1)


def _cut(
    image: Image.Image, place: list[float], scales: tuple[float, float], size: int
) -> np.ndarray:
    left, top, right, bottom = place
    box = (
        min(left, right) * scales[0],
        top * scales[1],
        min(max(left, right) * scales[0], image.width),
        min(bottom * scales[1], image.height),
    )
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if right < left:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)


def plain_view(
    size: int, mean: tuple[float, ...], std: tuple[float, ...], crop_pct: float, crop_mode: str,
    interpolation: str,
) -> Transform:  # fmt: skip
    """Return timm's evaluation transform: resize, crop, normalize to a tensor (3, size, size)."""
    view: Transform = create_transform(
        (3, size, size), mean=mean, std=std, crop_pct=crop_pct, crop_mode=crop_mode,
        interpolation=interpolation,
    )  # fmt: skip
    return view
