"""Data loaders: order and augmentation depend on (seed, epoch, image), never on timing."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from densevit.data.batch import CropBatch, Crops
from densevit.data.crops import Crop, Transform, cut_views
from densevit.data.image import Images, chosen_labels
from densevit.data.random_streams import ORDER, VIEWS, derived_seed


class TwoViews(Dataset[Crops]):
    """Map a list of (epoch, index) to their `Crops`.

    Builds whole batches: each crop is written directly to its place in the batch, in memory that a
    worker shares with the run.
    """

    def __init__(self, images: Images, size: int, seed: int) -> None:
        self.images, self.size, self.seed = images, size, seed

    def __getitems__(self, keys: list[tuple[int, int]]) -> Crops:
        shape = (len(keys), self.size, self.size, 3)
        pixels = [torch.empty(shape, dtype=torch.uint8) for _ in range(2)]
        if get_worker_info() is not None:
            pixels = [p.share_memory_() for p in pixels]
        targets = [p.numpy() for p in pixels]
        drawn: tuple[list[Crop], list[Crop]] = [], []
        for row, (epoch, index) in enumerate(keys):
            draws = random.Random(f"{VIEWS} {self.seed} {epoch} {index}")
            crops = cut_views(self.images.image(index), self.size, draws)
            for crop, target, views in zip(crops, targets, drawn, strict=True):
                target[row] = crop.pixels
                views.append(crop)
        first, second = (
            CropBatch(p, torch.tensor([c.place for c in k]), torch.tensor([c.color for c in k]))
            for p, k in zip(pixels, drawn, strict=True)
        )
        indices = [index for _, index in keys]
        labels = torch.from_numpy(chosen_labels(self.images.labels, indices))
        return Crops(first, second, labels, torch.tensor(indices))


class Plain(Dataset[tuple[Tensor, Any, int]]):
    """Map an index to image (3, S, S), label (or labels (C,)), index."""

    def __init__(self, images: Images, view: Transform) -> None:
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        return self.view(self.images.image(index).decode()), self.images.labels[index], index


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch from batch `start`; set `epoch` and `start` before iterating.

    Each rank gets its part of each global batch: the parts in rank order are the batch that a
    single process would get. An incomplete last batch is dropped.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.ranks = rank, ranks
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derived_seed(ORDER, self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        share = self.batch_size // self.ranks
        for number in range(self.start, len(self)):
            first = number * self.batch_size + self.rank * share
            yield [(self.epoch, index) for index in order[first : first + share]]


def training_batches(
    images: Images, size: int, order: BatchOrder, *, workers: int, pin: bool
) -> DataLoader[Crops]:
    """Return a loader of the `Crops` (`size` pixels a side) of each batch of an order."""
    return DataLoader(
        TwoViews(images, size, order.seed),
        batch_sampler=order,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_run,
        generator=torch.Generator(),  # its own: loading advances no other random stream
    )


def _leave_signals_to_the_run(_worker: int) -> None:
    """Ignore stop signals in a worker: Slurm and terminals signal all processes.

    A worker must survive the run's last step; it ends when the run ends, however that happens.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def let_go(batches: object) -> None:
    """Shut down the workers of a `DataLoader` iterator, or of a loader that keeps one.

    A worker's error keeps the iterator alive in a reference cycle of its traceback. At exit Python
    would then stop the workers by a signal, which they ignore, and wait forever.
    """
    iterator = getattr(batches, "_iterator", None) or batches
    getattr(iterator, "_shutdown_workers", lambda: None)()


def _as_it_is(crops: Any) -> Any:
    return crops


def on_device(batches: Iterable[Crops], device: torch.device) -> Iterator[Crops]:
    """Yield batches on a device; a GPU copies the next one while the current one is used."""
    if device.type != "cuda":
        for crops in batches:
            yield crops.to(device)
        return
    copying = torch.cuda.Stream(device)
    ahead: Crops | None = None
    for crops in batches:
        with torch.cuda.stream(copying):
            following = crops.to(device)
        if ahead is not None:
            yield _arrived(ahead, copying)
        ahead = following
    if ahead is not None:
        yield _arrived(ahead, copying)


def _arrived(crops: Crops, copying: torch.cuda.Stream) -> Crops:
    """Make the current stream wait for a copy, and keep its memory until that stream is done."""
    current = torch.cuda.current_stream()
    current.wait_stream(copying)
    moved = (*crops.first[:2], *crops.second[:2], crops.labels, crops.ids)
    for tensor in moved:
        tensor.record_stream(current)
    return crops


def probe_crops(images: Images, size: int, count: int) -> Crops:
    """Return `Crops` of at most `count` images, spread evenly, always in the same two views.

    Their ids are -2, so that no queue entry matches them.
    """
    count = min(count, len(images))
    dataset = TwoViews(images, size, seed=0)
    chosen = [i * len(images) // count for i in range(count)]
    crops = dataset.__getitems__([(0, index) for index in chosen])
    return crops._replace(ids=torch.full_like(crops.ids, -2))


def plain_batches(
    images: Images,
    view: Transform,
    *,
    batch_size: int,
    workers: int,
    pin: bool,
    chosen: Sequence[int] | None = None,
) -> DataLoader[tuple[Tensor, Any, int]]:
    """Return a loader of (images (B, 3, S, S), labels (B,) or (B, C), indices (B,)), each image
    once: all images, or those with the `chosen` indices, in this order."""
    return DataLoader(
        Plain(images, view),
        batch_size=batch_size,
        sampler=range(len(images)) if chosen is None else chosen,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_run,
        generator=torch.Generator(),
    )
