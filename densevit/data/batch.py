"""The batches that the data loaders pass to training: views and crops."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from densevit.data.color_augment import augment


class Batch(NamedTuple):
    """Images in two views: `view1`, `view2` (B, 3, S, S), the places `place1`, `place2` (B, 4) of
    these crops in the image (see `data.crops.Crop`), `labels` (B,) and `ids` (B,).

    Images with several classes have labels (B, C): 1 for each class of an image, else 0."""

    view1: Tensor
    view2: Tensor
    place1: Tensor
    place2: Tensor
    labels: Tensor
    ids: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    def split(self, size: int) -> list[Batch]:
        """Split into consecutive batches of at most `size` images."""
        return [Batch(*parts) for parts in zip(*(p.split(size) for p in self), strict=True)]


class CropBatch(NamedTuple):
    """The `Crop`s of a batch: `pixels` (B, S, S, 3), `place` (B, 4), `color` (B, 9)."""

    pixels: Tensor
    place: Tensor
    color: Tensor


class Crops(NamedTuple):
    """Two crops per image from the data loader workers, with `labels` and `ids` (B,)."""

    first: CropBatch
    second: CropBatch
    labels: Tensor
    ids: Tensor

    def to(self, device: torch.device) -> Crops:
        """Return the crops on another device, except `color`: `augment` needs it on the host."""

        def moved(crops: CropBatch) -> CropBatch:
            pixels, place = (t.to(device, non_blocking=True) for t in (crops.pixels, crops.place))
            return crops._replace(pixels=pixels, place=place)

        labels, ids = (t.to(device, non_blocking=True) for t in (self.labels, self.ids))
        return Crops(moved(self.first), moved(self.second), labels, ids)

    def developed(self, mean: Tensor | tuple[float, ...], std: Tensor | tuple[float, ...]) -> Batch:
        """Return the augmented batch for the network, on the device of the crops."""
        view1, view2 = (augment(c.pixels, c.color, mean, std) for c in (self.first, self.second))
        return Batch(view1, view2, self.first.place, self.second.place, self.labels, self.ids)
