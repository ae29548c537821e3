"""The features of a data set, made by all processes of a run together: in memory, or in a file that
an interrupted command finds again.
"""

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

from densevit.data.loading import plain_batches
from densevit.data.pictures import Images
from densevit.data.views import Transform
from densevit.distributed import World, agreed, gathered
from densevit.frozen.features import Which, extract
from densevit.rundir import put


@dataclass(frozen=True)
class Means:
    """With what features are made: `boundary` is called by all processes equally often."""

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
    means: Means,
    file: Path | None,
) -> Tensor:
    """(n, E) or (n, ..., E) float16 (see `extract`): a row a picture, all of them in each process.

    With a file they are written to it as they come and read from it as they are needed; one that is
    there already holds them. Without one they are held in memory.
    """
    if file is None:
        own = _own(model, images, view, tokens, means, None)
        parts = gathered(own, means.world)
        return parts[0] if means.world.ranks == 1 else _woven(parts, len(images))
    here = means.world
    if not agreed(int(here.writes and file.exists()), here):
        if here.writes:
            file.parent.mkdir(parents=True, exist_ok=True)
        gathered(None, here)  # the folder is there
        _own(model, images, view, tokens, means, _part(file, here.rank, here.ranks))
        gathered(None, here)  # all parts are
        if here.writes:
            _merge(file, here.ranks, len(images))
        gathered(None, here)
    # Private pages: torch wants to be able to write, and nothing does.
    return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))


def _own(
    model: nn.Module,
    images: Images,
    view: Transform,
    tokens: Which,
    means: Means,
    file: Path | None,
) -> Tensor | None:
    """The rows of this process's pictures; None where there are more processes than pictures."""
    rank, ranks = means.world.rank, means.world.ranks
    rounds = math.ceil(len(images) / (ranks * means.batch_size))
    called = 0

    def boundary() -> None:
        nonlocal called
        if called < rounds:
            means.boundary()
        called += 1

    batches = plain_batches(
        images, view, batch_size=means.batch_size, workers=means.workers,
        pin=means.device.type == "cuda", chosen=range(len(images))[rank::ranks],
    )  # fmt: skip
    own = None
    if rank < len(images):
        room = None if file is None else partial(_room, file)
        own = extract(model, batches, means.device, tokens=tokens, boundary=boundary, room=room)
    while called < rounds:  # as often as the process with the most pictures
        boundary()
    return None if own is None else own.values


def _room(file: Path, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(_array(file, shape))


def _array(file: Path, shape: Sequence[int]) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=tuple(shape))


def _part(file: Path, rank: int, ranks: int) -> Path:
    return file.with_name(f"{file.name}.{rank}-of-{ranks}")


def _merge(file: Path, ranks: int, count: int) -> None:
    """One file from those of the processes, of whose rows each has every so many-th."""
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


def _woven(parts: Sequence[Tensor | None], count: int) -> Tensor:
    rows = [part for part in parts if part is not None]
    whole = rows[0].new_empty(count, *rows[0].shape[1:])
    for number, part in enumerate(rows):
        whole[number :: len(parts)] = part
    return whole
