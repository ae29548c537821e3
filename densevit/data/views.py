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


def training_views(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> list[Transform]:
    """The pipelines of view 1 and view 2: a picture to a tensor (3, size, size), normalised.

    View 1: random resized crop, flip, colour jitter. View 2: a crop of at least a fifth of the
    area, and a Gaussian blur with probability 0.2; its radius follows MoCo v2 (Chen et al. 2020).
    """
    blur = v2.GaussianBlur(kernel_size=max(3, size // 10 | 1), sigma=(0.1, 2.0))

    def view(scale: tuple[float, float], further: list[torch.nn.Module]) -> v2.Compose:
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, scale, interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                *further,
                v2.Normalize(mean, std),
            ]
        )

    return [view((0.08, 1.0), []), view((0.2, 1.0), [v2.RandomApply([blur], p=0.2)])]


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
