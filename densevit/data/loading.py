"""Batches: order and augmentation are functions of (seed, epoch, picture), never of timing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from densevit.data.sources import Images
from densevit.data.views import Transform, derived_seed

# Numbers that keep the random streams of a run apart.
ORDER, VIEWS = 1, 2


class TwoViews(Dataset):
    """Item (epoch, index) -> view 1, view 2 (3, S, S), label, index."""

    def __init__(self, images: Images, views: list[Transform], seed: int) -> None:
        self.images, self.views, self.seed = images, views, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        epoch, index = key
        image = self.images.image(index)
        # The transforms draw from torch's global state; what the run itself draws stays apart.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(VIEWS, self.seed, epoch, index))
            first, second = (view(image) for view in self.views)
        return first, second, self.images.labels[index], index


class Plain(Dataset):
    """Item index -> picture (3, S, S), label, index."""

    def __init__(self, images: Images, view: Transform) -> None:
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
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
    images: Images, views: list[Transform], *, batch_size: int, seed: int, workers: int, pin: bool
) -> tuple[DataLoader, EpochOrder]:
    """Batches of (view 1, view 2 (B, 3, S, S), labels (B,), indices (B,)); the rest is dropped."""
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
