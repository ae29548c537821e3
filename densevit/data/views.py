"""What a run makes of a picture: two random crops for training, one plain view for testing.

Crops are cut where the picture is decoded. How the colours of each change is drawn with them, and
done for whole batches on the training device (`data.photometric`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from densevit.data.pictures import Picture
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

from timm.data import create_transform  # noqa: E402

Transform = Callable[[Image.Image], Tensor]

_JITTER, _HUE = 0.4, 0.1  # of brightness, contrast and saturation; of the hue
_RATIO = (3 / 4, 4 / 3)  # of a crop's width to its height
_SIGMA = (0.1, 2.0)  # of the blur, in pixels: MoCo v2 (Chen et al. 2020)


class Recipe(NamedTuple):
    """How a view is drawn: the share of the picture's area, and the probability of a blur."""

    scale: tuple[float, float]
    blur: float


# View 1: random resized crop, flip, colour jitter. View 2: a crop of at least a fifth of the area,
# and a Gaussian blur one time in five.
RECIPES = (Recipe((0.08, 1.0), 0.0), Recipe((0.2, 1.0), 0.2))


class Crop(NamedTuple):
    """A view of a picture before its colours change.

    pixels: (S, S, 3) uint8.
    place: left, top, right and bottom of the crop in pixels of the picture. A flipped view has left
        and right swapped: a point at a share u of the view's width then lies at
        left + u·(right − left) either way.
    colour: 9 numbers: factors of brightness, contrast and saturation, the shift of the hue, in
        which order the four are applied, and the sigma of the blur (0: none); see
        `data.photometric`.
    """

    pixels: np.ndarray
    place: list[float]
    colour: list[float]


def draw_view(
    recipe: Recipe, size: tuple[int, int], draws: random.Random
) -> tuple[list[float], list[float]]:
    """`place` and `colour` of a view of a picture of a size.

    The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip,
    ColorJitter, RandomApply and GaussianBlur. Drawn here because theirs, from tensors of one
    element, takes longer than a tenth of decoding the picture.
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
    """Left, top, width and height of a crop: Inception's (Szegedy et al. 2015)."""
    width, height = size
    for _ in range(10):
        area = width * height * draws.uniform(*scale)
        ratio = math.exp(draws.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return draws.randint(0, width - w), draws.randint(0, height - h), w, h
    # A picture too long for every try: the largest part of it within the ratios, from its middle.
    w = min(width, max(1, round(height * _RATIO[1])))
    h = min(height, max(1, round(width / _RATIO[0])))
    return (width - w) // 2, (height - h) // 2, w, h


def cut_views(picture: Picture, size: int, draws: random.Random) -> tuple[Crop, Crop]:
    """Both views of a picture, which is decoded once and no larger than they need."""
    drawn = [draw_view(recipe, picture.size, draws) for recipe in RECIPES]
    image = picture.decode(_reduction([place for place, _ in drawn], size))
    scales = image.width / picture.size[0], image.height / picture.size[1]
    first, second = (
        Crop(_cut(image, place, scales, size), place, colour) for place, colour in drawn
    )
    return first, second


def _reduction(places: list[list[float]], size: int) -> int:
    """How much smaller a picture may be decoded without any crop being enlarged for it."""
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
    """timm's own evaluation transform: resize, crop, normalise; a tensor (3, size, size)."""
    return create_transform(
        (3, size, size), mean=mean, std=std, crop_pct=crop_pct, crop_mode=crop_mode,
        interpolation=interpolation,
    )  # fmt: skip


def derived_seed(*parts: int) -> int:
    """A seed that is a function of whole numbers, well mixed: equal parts, equal seed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
