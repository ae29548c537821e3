"""Extraction of a data set's features by a frozen network, in one pass and in float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from densevit.data.loaders import let_go
from densevit.models.vit import Tokens
from densevit.utils.errors import RunError

Which = Literal["cls", "patch", "both", "patches"]


def in_memory(shape: Sequence[int]) -> Tensor:
    return torch.empty(*shape, dtype=torch.float16)


def extract(
    model: nn.Module,
    batches: DataLoader[tuple[Tensor, Any, int]],
    device: torch.device,
    *,
    tokens: Which,
    boundary: Callable[[], None] = lambda: None,
    allocate: Callable[[Sequence[int]], Tensor] = in_memory,
) -> Tensor:
    """Return the features (n, ..., E) float16, on the CPU, of batches from `plain_batches`.

    The rows are in the order of the indices, for any order of the batches. Each batch is written
    to one array: n · E · 2 bytes (1 GB for ImageNet's training images and ViT-S), times N for
    `patches`. `boundary` is called before each batch.

    Args:
        model: returns `Tokens` of images: a `DenseViT` or `models.vit.TimmTokens`.
        tokens: `cls` is `Tokens.image`, `patch` the mean of the patch tokens, `both` the two
            (n, 2, E), `patches` all patch tokens, row by row of the grid.
        allocate: allocates the float16 array from its shape; the default one is in memory.

    Raises:
        RunError: a feature is not finite in float16.
        ValueError: no batch, a repeated index, or unknown tokens.
    """
    was_training = model.training
    model.eval()
    try:
        values, indices = _collect(model, batches, device, tokens, boundary, allocate)
    finally:
        model.train(was_training)
    order = indices.argsort()
    if (indices[order].diff() == 0).any():
        raise ValueError("an image occurs twice in the batches")
    _reorder(values, order)
    return values


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in full precision: no autocast, and no TF32 on a GPU.

    With TF32 a cosine similarity is off by up to 1e-3, and L-BFGS stops early.
    """
    products = torch.backends.cuda.matmul
    allowed, products.allow_tf32 = products.allow_tf32, False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        products.allow_tf32 = allowed


def _collect(
    model: nn.Module,
    batches: DataLoader[tuple[Tensor, Any, int]],
    device: torch.device,
    tokens: Which,
    boundary: Callable[[], None],
    allocate: Callable[[Sequence[int]], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return values and indices in the order of the batches."""
    most, done = len(batches.sampler), 0  # type: ignore[arg-type]
    values: Tensor | None = None
    indices = torch.empty(most, dtype=torch.int64)
    remaining = iter(batches)
    try:
        while True:
            boundary()
            batch = next(remaining, None)
            if batch is None:
                break
            images, _, places = batch
            with torch.inference_mode():
                found = _select(model(images.to(device, non_blocking=True)), tokens)
                found = found.to(torch.float16).cpu()
            _check_finite(found, places)
            if values is None:
                # Outside inference_mode: a probe may use these tensors in autograd later.
                values = allocate((most, *found.shape[1:]))
            rows = slice(done, done + len(found))
            values[rows], indices[rows] = found, places
            done += len(found)
    finally:
        let_go(remaining)
    if values is None:
        raise ValueError("no batch to extract features of")
    return values[:done], indices[:done]


def _select(found: Tokens, tokens: Which) -> Tensor:
    if tokens == "cls":
        return found.image
    if tokens == "patch":
        return found.patches.float().mean(dim=1)
    if tokens == "both":
        return torch.stack([found.image.float(), found.patches.float().mean(dim=1)], dim=1)
    if tokens == "patches":
        return found.patches
    raise ValueError(f"tokens must be cls, patch, both or patches, got {tokens!r}")


def _check_finite(found: Tensor, places: Tensor) -> None:
    finite = found.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise RunError(
            f"the features of image {int(places[~finite][0])} are not finite in float16 "
            f"(NaN, or beyond ±65504)"
        )


def _reorder(values: Tensor, order: Tensor) -> None:
    """Set values[i] = values[order[i]] in place, along the cycles of the permutation.

    The features may fill half of the memory; indexing would copy them.
    """
    source = order.tolist()
    for start in range(len(source)):
        if source[start] == start:
            continue
        first, place = values[start].clone(), start
        while source[place] != start:
            values[place] = values[source[place]]
            source[place], place = place, source[place]
        values[place], source[place] = first, place
