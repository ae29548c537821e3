"""Features of a data set, extracted by all processes of a run, in memory or in a cache file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densevit.data.crops import Transform
from densevit.data.image import Images
from densevit.data.loaders import plain_batches
from densevit.evaluate.probes.features import Which, extract, in_memory
from densevit.utils.distributed import World, all_gather, all_reduce_max
from densevit.utils.files import put


@dataclass(frozen=True)
class Resources:
    """Resources to extract features; all processes call `boundary` equally often."""

    device: torch.device
    world: World
    batch_size: int
    workers: int
    boundary: Callable[[], None] = lambda: None


def features(
    model: nn.Module,
    images: Images,
    view: Transform,
    tokens: Which,
    resources: Resources,
    file: Path | None,
) -> Tensor:
    """Return features (n, ..., E) float16 (see `extract`): in each process all rows, one per image.

    With a file, features are written to it batch by batch and read from it on demand; an existing
    file is reused. Without one they are held in memory.
    """
    if file is None:
        own = _own(model, images, view, tokens, resources, None)
        parts = all_gather(own, resources.world)
        return parts[0] if resources.world.ranks == 1 else _interleave(parts, len(images))
    world = resources.world
    if not all_reduce_max(int(world.writes and file.exists()), world):
        if world.writes:
            file.parent.mkdir(parents=True, exist_ok=True)
        all_gather(None, world)  # the folder exists
        _own(model, images, view, tokens, resources, _part(file, world.rank, world.ranks))
        all_gather(None, world)  # all parts are written
        if world.writes:
            _merge(file, world.ranks, len(images))
        all_gather(None, world)
    # Private pages: torch requires a writable array, but nothing writes.
    return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))


def _own(
    model: nn.Module,
    images: Images,
    view: Transform,
    tokens: Which,
    resources: Resources,
    file: Path | None,
) -> Tensor | None:
    """Return the rows of this process's images; None for a process without an image."""
    rank, ranks = resources.world.rank, resources.world.ranks
    rounds = math.ceil(len(images) / (ranks * resources.batch_size))
    called = 0

    def boundary() -> None:
        nonlocal called
        if called < rounds:
            resources.boundary()
        called += 1

    batches = plain_batches(
        images, view, batch_size=resources.batch_size, workers=resources.workers,
        pin=resources.device.type == "cuda", chosen=range(len(images))[rank::ranks],
    )  # fmt: skip
    own = None
    if rank < len(images):
        allocate = in_memory if file is None else partial(_allocate, file)
        own = extract(
            model, batches, resources.device, tokens=tokens, boundary=boundary, allocate=allocate
        )
    while called < rounds:  # as often as the process with the most images
        boundary()
    return own


def _allocate(file: Path, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(_array(file, shape))


def _array(file: Path, shape: Sequence[int]) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=tuple(shape))


def _part(file: Path, rank: int, ranks: int) -> Path:
    return file.with_name(f"{file.name}.{rank}-of-{ranks}")


def _merge(file: Path, ranks: int, count: int) -> None:
    """Merge the files of all processes; rank r holds rows r, r + ranks, r + 2·ranks, …"""
    parts = [_part(file, rank, ranks) for rank in range(min(ranks, count))]
    if ranks == 1:
        put(parts[0], file)
        return
    whole, target = _part(file, ranks, ranks), None
    for rank, part in enumerate(parts):
        rows = np.load(part, mmap_mode="r", allow_pickle=False)
        if target is None:
            target = _array(whole, (count, *rows.shape[1:]))
        target[rank::ranks] = rows
    del target  # written out
    put(whole, file)
    for part in parts:
        part.unlink()


def _interleave(parts: Sequence[Tensor | None], count: int) -> Tensor:
    rows = [part for part in parts if part is not None]
    whole = rows[0].new_empty(count, *rows[0].shape[1:])
    for number, part in enumerate(rows):
        whole[number :: len(parts)] = part
    return whole
