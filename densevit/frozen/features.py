"""The features of a data set from a frozen network, in one pass and in float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from densevit.data.loading import let_go
from densevit.errors import RunError
from densevit.model import Tokens

Which = Literal["cls", "patch", "both", "patches"]


class Features(NamedTuple):
    """A row a picture, on the CPU: `values` (n, E) or (n, ..., E) float16, `labels` (n,) int64."""

    values: Tensor
    labels: Tensor


def extract(
    model: nn.Module,
    batches: DataLoader,
    device: torch.device,
    *,
    tokens: Which,
    boundary: Callable[[], None] = lambda: None,
    room: Callable[[Sequence[int]], Tensor] | None = None,
) -> Features:
    """One pass over batches of (pictures (B, 3, S, S), labels (B,), indices (B,)).

    The rows are in the order of the indices, whatever the order of the batches. The features are
    written into one array as they come: n · E · 2 bytes (1 GB for ImageNet's training pictures and
    ViT-S), times N for `patches`. `boundary` is called before each batch.

    Args:
        model: gives `Tokens` of pictures: a `DenseViT`, or a classifier as `model.TimmTokens`.
        tokens: `cls` is `Tokens.image`, `patch` the mean of the patch tokens, `both` the two
            (n, 2, E), `patches` all patch tokens, row by row of the grid.
        room: makes the array for them, float16, from its shape; memory, if left out.

    Raises:
        RunError: a feature is not finite in float16.
        ValueError: no batch, a picture that comes twice, or unknown tokens.
    """
    was_training = model.training
    model.eval()
    try:
        values, labels, indices = _collected(model, batches, device, tokens, boundary, room)
    finally:
        model.train(was_training)
    order = indices.argsort()
    if (indices[order].diff() == 0).any():
        raise ValueError("a picture comes twice in the batches")
    _reorder(values, order)
    return Features(values, labels[order])


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 in float32: no autocast, and on a GPU no TF32.

    With TF32 a cosine similarity is off by up to 1e-3, and L-BFGS ends early.
    """
    products = torch.backends.cuda.matmul
    allowed, products.allow_tf32 = products.allow_tf32, False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        products.allow_tf32 = allowed


def _collected(
    model: nn.Module,
    batches: DataLoader,
    device: torch.device,
    tokens: Which,
    boundary: Callable[[], None],
    room: Callable[[Sequence[int]], Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, labels and indices in the order of the batches."""
    most, done = len(batches.sampler), 0  # type: ignore[arg-type]
    values: Tensor | None = None
    labels, indices = (torch.empty(most, dtype=torch.int64) for _ in range(2))
    remaining = iter(batches)
    try:
        while True:
            boundary()
            batch = next(remaining, None)
            if batch is None:
                break
            images, of_batch, places = batch
            with torch.inference_mode():
                found = _wanted(model(images.to(device, non_blocking=True)), tokens)
                found = found.to(torch.float16).cpu()
            _check_finite(found, places)
            if values is None:
                # Not under inference_mode: a probe's gradients may be taken through these later.
                shape = (most, *found.shape[1:])
                values = torch.empty(shape, dtype=torch.float16) if room is None else room(shape)
            rows = slice(done, done + len(found))
            values[rows], labels[rows], indices[rows] = found, of_batch, places
            done += len(found)
    finally:
        let_go(remaining)
    if values is None:
        raise ValueError("no batch to extract features of")
    return values[:done], labels[:done], indices[:done]


def _wanted(found: Tokens, tokens: Which) -> Tensor:
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
            f"the features of picture {int(places[~finite][0])} are not finite in float16 "
            f"(NaN, or beyond ±65504)"
        )


def _reorder(values: Tensor, order: Tensor) -> None:
    """values[i] = values[order[i]], in place: along the cycles of the permutation.

    The features may fill half of the memory; indexing would copy them.
    """
    source = order.tolist()
    for start in range(len(source)):
        if source[start] == start:
            continue
        kept, place = values[start].clone(), start
        while source[place] != start:
            values[place] = values[source[place]]
            source[place], place = place, source[place]
        values[place], source[place] = kept, place
