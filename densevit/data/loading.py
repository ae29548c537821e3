"""Batches: order and augmentation are functions of (seed, epoch, picture), never of timing."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from densevit.data.photometric import develop
from densevit.data.pictures import Images
from densevit.data.views import Crop, Transform, cut_views, derived_seed

# Numbers that keep the random streams of a run apart.
ORDER, VIEWS = 1, 2


class Batch(NamedTuple):
    """Pictures in two views: `view1`, `view2` (B, 3, S, S), the places `place1`, `place2` (B, 4)
    of the picture that they show (see `data.views.Crop`), `labels` (B,) and `ids` (B,)."""

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


class CropBatch(NamedTuple):
    """`data.views.Crop`s of a batch: `pixels` (B, S, S, 3), `place` (B, 4), `colour` (B, 9)."""

    pixels: Tensor
    place: Tensor
    colour: Tensor


class Crops(NamedTuple):
    """What the loading processes make of pictures: two crops each, `labels` and `ids` (B,)."""

    first: CropBatch
    second: CropBatch
    labels: Tensor
    ids: Tensor

    def to(self, device: torch.device) -> Crops:
        """The same on another device, but for the colours: `develop` wants them on the host."""

        def moved(crops: CropBatch) -> CropBatch:
            pixels, place = (t.to(device, non_blocking=True) for t in (crops.pixels, crops.place))
            return crops._replace(pixels=pixels, place=place)

        rest = (t.to(device, non_blocking=True) for t in (self.labels, self.ids))
        return Crops(moved(self.first), moved(self.second), *rest)

    def developed(self, mean: Tensor | tuple[float, ...], std: Tensor | tuple[float, ...]) -> Batch:
        """The batch that a network sees, where the crops lie."""
        views = (develop(c.pixels, c.colour, mean, std) for c in (self.first, self.second))
        return Batch(*views, self.first.place, self.second.place, self.labels, self.ids)


class TwoViews(Dataset):
    """A list of (epoch, index) -> their `Crops`.

    Whole batches at once: each crop is written where the batch will lie, in the memory that a
    loading process shares with the run, and nowhere before.
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
            crops = cut_views(self.images.picture(index), self.size, draws)
            for crop, target, kept in zip(crops, targets, drawn, strict=True):
                target[row] = crop.pixels
                kept.append(crop)
        first, second = (
            CropBatch(p, torch.tensor([c.place for c in k]), torch.tensor([c.colour for c in k]))
            for p, k in zip(pixels, drawn, strict=True)
        )
        indices = [index for _, index in keys]
        labels = torch.tensor([self.images.labels[index] for index in indices])
        return Crops(first, second, labels, torch.tensor(indices))


class Plain(Dataset):
    """Item index -> picture (3, S, S), label, index."""

    def __init__(self, images: Images, view: Transform) -> None:
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.view(self.images.picture(index).decode()), self.images.labels[index], index


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch, from a batch on: set `epoch` and `start` before iterating.

    Each rank gets its part of each global batch: the parts in the order of the ranks are the batch
    that a single process would get. An incomplete last batch is dropped.
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
) -> DataLoader:
    """The `Crops` (of `size` pixels a side) of each batch of an order."""
    return DataLoader(
        TwoViews(images, size, order.seed),
        batch_sampler=order,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_run,
        generator=torch.Generator(),  # its own, so that loading moves no other random stream
    )


def _leave_signals_to_the_run(_worker: int) -> None:
    """Slurm and terminals signal all processes; one that loads must outlive the run's last step.

    It ends when the run does, however that ends.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def let_go(batches: Iterable) -> None:
    """End the loading processes of an iterator over a `DataLoader`, or that one keeps, if any.

    An error from one of them keeps the iterator alive, in a circle of its traceback; at its end
    Python would tell them to go by a signal, which they leave to the run, and wait for ever.
    """
    iterator = getattr(batches, "_iterator", None) or batches
    getattr(iterator, "_shutdown_workers", lambda: None)()


def _as_it_is(crops: Crops) -> Crops:
    return crops


def on_device(batches: Iterable[Crops], device: torch.device) -> Iterator[Crops]:
    """Batches on a device; on a GPU the next one is copied while the last one is worked on."""
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
    """`Crops` of at most `count` pictures, spread evenly over all, in the same two views always.

    Their ids are -2, so that no entry of a queue passes for one of them.
    """
    count = min(count, len(images))
    pictures = TwoViews(images, size, seed=0)
    chosen = [i * len(images) // count for i in range(count)]
    crops = pictures.__getitems__([(0, index) for index in chosen])
    return crops._replace(ids=torch.full_like(crops.ids, -2))


def plain_batches(
    images: Images,
    view: Transform,
    *,
    batch_size: int,
    workers: int,
    pin: bool,
    chosen: Sequence[int] | None = None,
) -> DataLoader:
    """Batches of (pictures (B, 3, S, S), labels (B,), indices (B,)), each picture once: all of
    them, or those at the chosen places."""
    return DataLoader(
        Plain(images, view),
        batch_size=batch_size,
        sampler=range(len(images)) if chosen is None else chosen,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_run,
        generator=torch.Generator(),
    )
