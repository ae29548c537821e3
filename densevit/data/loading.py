"""Batches: order and augmentation are functions of (seed, epoch, picture), never of timing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from densevit.data.sources import Images
from densevit.data.views import Transform, View, derived_seed

# Numbers that keep the random streams of a run apart.
ORDER, VIEWS = 1, 2


class Batch(NamedTuple):
    """Pictures in two views: `view1`, `view2` (B, 3, S, S), the places `place1`, `place2` (B, 4)
    of the picture that they show (see `data.views.View`), `labels` (B,) and `ids` (B,)."""

    view1: Tensor
    view2: Tensor
    place1: Tensor
    place2: Tensor
    labels: Tensor
    ids: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

    def split(self, size: int) -> list[Batch]:
        """Consecutive batches of at most `size` pictures."""
        return [Batch(*parts) for parts in zip(*(p.split(size) for p in self), strict=True)]


class TwoViews(Dataset):
    """Item (epoch, index) -> a `Batch` of one picture, without the first dimension."""

    def __init__(self, images: Images, views: list[View], seed: int) -> None:
        self.images, self.views, self.seed = images, views, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | int, ...]:
        epoch, index = key
        image = self.images.image(index)
        # The transforms draw from torch's global state; what the run itself draws stays apart.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(VIEWS, self.seed, epoch, index))
            (first, place1), (second, place2) = (view(image) for view in self.views)
        return Batch(first, second, place1, place2, self.images.labels[index], index)


class Plain(Dataset):
    """Item index -> picture (3, S, S), label, index."""

    def __init__(self, images: Images, view: Transform) -> None:
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.view(self.images.image(index)), self.images.labels[index], index


class EpochOrder(Sampler[tuple[int, int]]):
    """The training pictures in the order of one epoch; set `epoch` before iterating."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(derived_seed(ORDER, self.seed, self.epoch))
        for index in torch.randperm(self.count, generator=generator).tolist():
            yield self.epoch, index


def training_batches(
    images: Images, views: list[View], *, batch_size: int, seed: int, workers: int, pin: bool
) -> tuple[DataLoader, EpochOrder]:
    """Each `Batch` of an epoch, and the order they come in; an incomplete last one is dropped."""
    order = EpochOrder(len(images), seed)
    loader = DataLoader(
        TwoViews(images, views, seed),
        batch_size=batch_size,
        sampler=order,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=torch.Generator(),  # its own, so that loading moves no other random stream
    )
    return loader, order


def probe_batch(images: Images, views: list[View], count: int) -> Batch:
    """A `Batch` of at most `count` pictures, spread evenly over all, in the same two views always.

    Their ids are -2, so that no entry of a queue passes for one of them.
    """
    count = min(count, len(images))
    pictures = TwoViews(images, views, seed=0)
    chosen = [i * len(images) // count for i in range(count)]
    batch = default_collate([pictures[0, index] for index in chosen])
    return batch._replace(ids=torch.full_like(batch.ids, -2))


def plain_batches(
    images: Images, view: Transform, *, batch_size: int, workers: int, pin: bool
) -> DataLoader:
    """Batches of (pictures (B, 3, S, S), labels (B,), indices (B,)), each picture once."""
    return DataLoader(
        Plain(images, view),
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),
    )
