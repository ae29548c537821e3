"""What a run makes of a picture: two random crops for training, one plain view for testing.

Crops are cut where the picture is decoded. How the colours of each change is drawn with them, and
done for whole batches on the training device (`data.photometric`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from densevit.data.pictures import Picture
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

from timm.data import create_transform  # noqa: E402
from torchvision.transforms import ColorJitter, GaussianBlur, RandomResizedCrop  # noqa: E402

Transform = Callable[[Image.Image], Tensor]

_JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
_RATIO = [3 / 4, 4 / 3]
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
    place: (4,) left, top, right and bottom of the crop in pixels of the picture. A flipped view has
        left and right swapped: a point at a share u of the view's width then lies at
        left + u·(right − left) either way.
    colour: (9,) factors of brightness, contrast and saturation, the shift of the hue, in which
        order the four are applied, and the sigma of the blur (0: none); see `data.photometric`.
    """

    pixels: Tensor
    place: Tensor
    colour: Tensor


def draw_view(recipe: Recipe, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`place` and `colour` of a view of a picture of a size, from torch's global random state."""
    width, height = size
    picture = torch.empty(1, height, width, device="meta")  # get_params asks for no more
    top, left, crop_height, crop_width = RandomResizedCrop.get_params(
        picture, list(recipe.scale), _RATIO
    )
    sides = [left, left + crop_width]
    if torch.rand(1).item() < 0.5:
        sides.reverse()
    place = torch.tensor([sides[0], top, sides[1], top + crop_height], dtype=torch.float32)
    order, *factors = ColorJitter.get_params(
        _JITTER.brightness, _JITTER.contrast, _JITTER.saturation, _JITTER.hue
    )
    blurred = torch.rand(1).item() < recipe.blur
    sigma = GaussianBlur.get_params(*_SIGMA) if blurred else 0.0
    return place, torch.tensor([*factors, *order.tolist(), sigma], dtype=torch.float32)


def cut_views(picture: Picture, size: int) -> tuple[Crop, Crop]:
    """Both views of a picture, which is decoded once and no larger than they need.

    Draws from torch's global random state.
    """
    drawn = [draw_view(recipe, picture.size) for recipe in RECIPES]
    image = picture.decode(_reduction([place for place, _ in drawn], size))
    scales = image.width / picture.size[0], image.height / picture.size[1]
    first, second = (
        Crop(_cut(image, place, scales, size), place, colour) for place, colour in drawn
    )
    return first, second


def _reduction(places: list[Tensor], size: int) -> int:
    """How much smaller a picture may be decoded without any crop being enlarged for it."""
    smallest = min(min(abs(r - x), y - t) for x, t, r, y in (p.tolist() for p in places))
    return next((d for d in (8, 4, 2) if smallest >= d * size), 1)


def _cut(image: Image.Image, place: Tensor, scales: tuple[float, float], size: int) -> Tensor:
    left, top, right, bottom = place.tolist()
    box = (
        min(left, right) * scales[0],
        top * scales[1],
        min(max(left, right) * scales[0], image.width),
        min(bottom * scales[1], image.height),
    )
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if right < left:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(crop))


def plain_view(
    size: int, mean: tuple[float, ...], std: tuple[float, ...], crop_pct: float, interpolation: str
) -> Transform:
    """timm's own evaluation transform: resize, centre crop, normalise; a tensor (3, size, size)."""
    return create_transform(
        (3, size, size), mean=mean, std=std, crop_pct=crop_pct, interpolation=interpolation
    )


def derived_seed(*parts: int) -> int:
    """A seed that is a function of whole numbers, well mixed: equal parts, equal seed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
