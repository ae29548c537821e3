"""What a run makes of a picture: two augmented views for training, one plain view for testing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

from timm.data import create_transform  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

Transform = Callable[[Image.Image], torch.Tensor]


class View:
    """A picture to a tensor (3, size, size), normalised, and the place (4,) that it shows.

    The place is left, top, right and bottom of the crop in pixels of the picture. A flipped view
    has left and right swapped: a point at a share u of the view's width then lies at
    left + u·(right − left) either way.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        further: list[torch.nn.Module],
    ) -> None:
        self.crop = v2.RandomResizedCrop(size, scale, interpolation=v2.InterpolationMode.BICUBIC)
        self.rest = v2.Compose(
            [
                v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                *further,
                v2.Normalize(mean, std),
            ]
        )

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = self.crop.make_params([image])
        cropped = self.crop.transform(image, chosen)
        left, right = chosen["left"], chosen["left"] + chosen["width"]
        top, bottom = chosen["top"], chosen["top"] + chosen["height"]
        if torch.rand(1) < 0.5:
            cropped = v2.functional.horizontal_flip(cropped)
            left, right = right, left
        place = torch.tensor([left, top, right, bottom], dtype=torch.float32)
        return self.rest(cropped), place


def training_views(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> list[View]:
    """The pipelines of view 1 and view 2.

    View 1: random resized crop, flip, colour jitter. View 2: a crop of at least a fifth of the
    area, and a Gaussian blur with probability 0.2; its radius follows MoCo v2 (Chen et al. 2020).
    """
    blur = v2.GaussianBlur(kernel_size=max(3, size // 10 | 1), sigma=(0.1, 2.0))
    return [
        View(size, (0.08, 1.0), mean, std, []),
        View(size, (0.2, 1.0), mean, std, [v2.RandomApply([blur], p=0.2)]),
    ]


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
