"""A linear segmentation on frozen patch tokens: what each patch knows of its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from densevit.frozen.features import full_precision
from densevit.frozen.masks import VOID
from densevit.predictions import Areas
from densevit.torchvision_guard import ensure_torchvision

LONGEST = 512  # pixels of a mask's longer side at which it is scored as it is


class Masked(NamedTuple):
    """Patch tokens (n, N, E) of pictures, and the mask (H, W) uint8 of each by its place.

    The tokens are those of whole pictures (`probes.SQUEEZED`). A mask holds classes and `VOID`, at
    the picture's own size: what `densevit.frozen.masks` gives.
    """

    patches: Tensor
    mask: Callable[[int], np.ndarray]


def dense_probe(
    train: Masked,
    test: Masked,
    classes: Sequence[str],
    grid: tuple[int, int],
    *,
    samples: Sequence[str],
    size: int,
    steps: int = 500,
    batch_size: int = 16,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-4,
    seed: int = 0,
    device: torch.device | None = None,
    boundary: Callable[[], None] = lambda: None,
) -> Areas:
    """Train a linear classifier of patch tokens on masks, and score it on others.

    The tokens are standardised by the training set's mean and standard deviation. The logits of a
    picture's patches are enlarged bilinearly (corners not aligned) to the mask; the loss is the
    cross-entropy of the pixels that are not void. AdamW, a cosine from `learning_rate` to 0, from
    weights of 0; the seed decides the batches, and nothing else is random.

    Masks are trained on at `size` x `size`, the model's square input, to which their pictures were
    squeezed. They are scored at their own size and proportions, or if the longer side is above
    `LONGEST` pixels, at that; so Pascal VOC's, of at most 500, are scored as they are. Masks are
    made smaller by taking the nearest pixel.

    Args:
        classes: their names, in the order of the masks' values.
        grid: rows and columns of patches; N is their product.
        samples: (n,) what the pictures of `test` are called.
        size: side of the model's input in pixels (`DenseViT.image_size`).
        device: where it is trained; that of the patches if left out.
        boundary: called before each step.

    Raises:
        ValueError: patches that do not fit the grid, a mask's value that is no class, or no pixel
            but void ones to learn from.
    """
    for name, part in (("train", train), ("test", test)):
        if part.patches.ndim != 3 or part.patches.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{name}: patches must be (n, {grid[0] * grid[1]}, E) for the grid {grid}, "
                f"got {tuple(part.patches.shape)}"
            )
    device = train.patches.device if device is None else device
    masks = _squeezed(train, size, len(classes))
    mean, scale = _statistics(train.patches)
    layer = nn.Linear(train.patches.shape[2], len(classes), device=device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    classifier = _Classifier(mean.to(device), scale.to(device), layer, grid)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with full_precision(device):
        with torch.enable_grad():
            for places in _draws(len(masks), batch_size, steps, seed):
                boundary()
                optimiser.zero_grad()
                _loss(classifier, train.patches[places], masks[places].to(device)).backward()
                optimiser.step()
                schedule.step()
        with torch.no_grad():
            return areas(_answers(test, classifier, len(classes)), classes, samples)


def areas(
    answers: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str], samples: Sequence[str]
) -> Areas:
    """Of a predicted and a true mask of each of the samples, integers (H, W); `VOID` in the latter
    does not count."""
    ensure_torchvision()  # torchmetrics imports it where it is installed
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    tables = [
        multiclass_confusion_matrix(
            predicted.flatten(), truth.flatten(), len(classes), ignore_index=VOID,
            validate_args=False,
        ).cpu()
        for predicted, truth in answers
    ]  # fmt: skip
    table = torch.stack(tables).to(torch.int32).numpy()  # (n, C, C), a row a true class
    if not table.any():
        raise ValueError("no pixel but void ones to score")
    right = np.diagonal(table, axis1=1, axis2=2)
    return Areas(
        "dense-probe", tuple(classes), list(samples), right.copy(),
        table.sum(axis=1, dtype=np.int32), table.sum(axis=2, dtype=np.int32),
    )  # fmt: skip


class _Classifier(NamedTuple):
    """What standardises (E,), the linear layer, and the grid of patches."""

    mean: Tensor
    scale: Tensor
    layer: nn.Linear
    grid: tuple[int, int]

    def pixels(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (B, H, W, C) from patches (B, N, E)."""
        rows = (patches.to(self.mean.device).float() - self.mean) / self.scale
        return _enlarged(self.layer(rows).unflatten(1, self.grid), size)


def _loss(classifier: _Classifier, patches: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels (B, S, S) that are not void; 0 if there are none."""
    pixels, truth = classifier.pixels(patches, masks.shape[1:]), masks.long().flatten()
    # Flat: on a GPU the cross-entropy of (B, C, H, W) sums in no fixed order.
    total = F.cross_entropy(pixels.flatten(0, 2), truth, ignore_index=VOID, reduction="sum")
    return total / (truth != VOID).sum().clamp_min(1)


def _answers(
    test: Masked, classifier: _Classifier, classes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for place in range(len(test.patches)):
        mask = _checked(test.mask(place), place, classes)
        height, width = mask.shape
        if max(height, width) > LONGEST:
            shrink = LONGEST / max(height, width)
            height, width = (max(1, round(side * shrink)) for side in (height, width))
            mask = _nearest(mask, height, width)
        pixels = classifier.pixels(test.patches[place : place + 1], (height, width))[0]
        yield pixels.argmax(dim=2), torch.from_numpy(mask.astype(np.int64)).to(pixels.device)


def _squeezed(train: Masked, size: int, classes: int) -> Tensor:
    """All masks (n, size, size) uint8."""
    masks = torch.empty(len(train.patches), size, size, dtype=torch.uint8)
    for place in range(len(masks)):
        mask = _nearest(_checked(train.mask(place), place, classes), size, size)
        masks[place] = torch.from_numpy(mask.copy())
    if (masks == VOID).all():
        raise ValueError("train: no pixel but void ones to learn from")
    return masks


def _checked(mask: np.ndarray, place: int, classes: int) -> np.ndarray:
    if ((mask >= classes) & (mask != VOID)).any():
        raise ValueError(f"mask {place}: holds values beyond the {classes} classes")
    return mask


def _nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    if mask.shape == (height, width):
        return mask
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized)


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (E,) over all patches, a part of the pictures at a time."""
    count = patches.shape[0] * patches.shape[1]
    parts = patches.split(64)
    mean = torch.stack([p.double().sum(dim=(0, 1)) for p in parts]).sum(dim=0) / count
    square = torch.stack([(p.double() - mean).square().sum(dim=(0, 1)) for p in parts])
    scale = (square.sum(dim=0) / count).sqrt()
    scale[scale == 0] = 1  # a feature that never changes stays 0
    return mean.float(), scale.float()


def _draws(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """The places of each step's pictures: the set in a new order each time round."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, rows, columns, C) -> (B, H, W, C), as `F.interpolate(mode="bilinear")` does it.

    By matrix products, whose gradient is summed in a fixed order on a GPU; interpolate's is not.
    """
    down = _weights(size[0], logits.shape[1]).to(logits.device)  # (H, rows)
    across = _weights(size[1], logits.shape[2]).to(logits.device)  # (W, columns)
    wide = torch.einsum("wc,brcq->brwq", across, logits)
    return torch.einsum("hr,brwq->bhwq", down, wide)


@lru_cache(maxsize=256)
def _weights(size: int, cells: int) -> Tensor:
    """(size, cells): how much of each cell a pixel is made of."""
    return F.interpolate(torch.eye(cells)[None], size=size, mode="linear")[0].T
