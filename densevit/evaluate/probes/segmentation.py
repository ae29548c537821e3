"""Linear segmentation from frozen patch tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from densevit.evaluate.predictions import MaskPredictions
from densevit.evaluate.probes.features import full_precision
from densevit.evaluate.probes.mask_values import VOID
from densevit.evaluate.probes.masks import MaskedImages
from densevit.evaluate.probes.run import FeatureSet, ProbeInput
from densevit.utils.torchvision_compat import ensure_torchvision

LONGEST = 512  # masks whose longer side has more pixels are shrunk to this before scoring


class Masked(NamedTuple):
    """Patch tokens (n, N, E) of images, and a function from an index to its mask (H, W) uint8.

    The tokens are those of whole images (`run.SQUEEZED`). A mask holds classes and `VOID` at
    the image's own size, as `densevit.evaluate.probes.masks` returns it.
    """

    patches: Tensor
    mask: Callable[[int], np.ndarray]


def predict(probe: ProbeInput) -> MaskPredictions:
    """Predict the masks of the test images by a linear classifier of patch tokens."""
    if probe.grid is None:
        raise ValueError(f"{probe.name}: needs a grid of patches")
    train, test = _masked(probe.train), _masked(probe.test)
    return dense_probe(
        train, test, probe.train.images.classes, probe.grid,
        samples=probe.test.images.ids, size=probe.image_size, seed=probe.seed, device=probe.device,
        boundary=probe.boundary,
    )  # fmt: skip


def _masked(features: FeatureSet) -> Masked:
    images = features.images
    if not isinstance(images, MaskedImages):
        raise TypeError(f"images with masks are needed, got {type(images).__name__}")
    return Masked(features.features, images.mask)


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
) -> MaskPredictions:
    """Train a linear classifier of patch tokens on masks, and score it on test masks.

    Tokens are standardized by the training set's mean and standard deviation. The logits of an
    image's patches are upsampled bilinearly (corners not aligned) to the mask; the loss is the
    cross-entropy of the pixels that are not void. AdamW with a cosine schedule from
    `learning_rate` to 0 starts from zero weights; only the batches are random, by the seed.

    Training masks are resized to `size` x `size`, the model's square input, like their images. Test
    masks are scored at their own size, or shrunk to a longer side of `LONGEST` pixels; Pascal VOC's
    masks, at most 500 pixels, keep their size. Masks are resized by nearest neighbor.

    Args:
        classes: class names, in the order of the masks' values.
        grid: rows and columns of patches; N is their product.
        samples: (n,) ids of the `test` images.
        size: side of the model's input in pixels (`DenseViT.image_size`).
        device: device of the training; None is that of the patches.
        boundary: called before each step.

    Raises:
        ValueError: patches that do not fit the grid, a mask value that is not a class, or only
            void pixels to train on.
    """
    for split, part in (("train", train), ("test", test)):
        if part.patches.ndim != 3 or part.patches.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"{split}: patches must be (n, {grid[0] * grid[1]}, E) for the grid {grid}, "
                f"got {tuple(part.patches.shape)}"
            )
    device = train.patches.device if device is None else device
    masks = _squeezed(train, size, len(classes))
    mean, scale = _statistics(train.patches)
    layer = nn.Linear(train.patches.shape[2], len(classes), device=device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    classifier = _Classifier(mean.to(device), scale.to(device), layer, grid)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with full_precision(device):
        with torch.enable_grad():
            for places in _draws(len(masks), batch_size, steps, seed):
                boundary()
                optimizer.zero_grad()
                _loss(classifier, train.patches[places], masks[places].to(device)).backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            masks_of_test = _predicted_masks(test, classifier, len(classes))
            return count_pixels(masks_of_test, classes, samples)


def count_pixels(
    masks: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str], samples: Sequence[str]
) -> MaskPredictions:
    """Count pixels by class in pairs of predicted and true masks (H, W); true `VOID` is ignored."""
    ensure_torchvision()  # torchmetrics imports torchvision if installed
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    tables = [
        multiclass_confusion_matrix(
            predicted.flatten(), true.flatten(), len(classes), ignore_index=VOID,
            validate_args=False,
        ).cpu()
        for predicted, true in masks
    ]  # fmt: skip
    table = torch.stack(tables).to(torch.int32).numpy()  # (n, C, C), one row per true class
    if not table.any():
        raise ValueError("all pixels are void: nothing to score")
    right = np.diagonal(table, axis1=1, axis2=2)
    return MaskPredictions(
        "dense-probe", tuple(classes), list(samples), right.copy(),
        table.sum(axis=1, dtype=np.int32), table.sum(axis=2, dtype=np.int32),
    )  # fmt: skip


class _Classifier(NamedTuple):
    """Mean and scale (E,) to standardize tokens, the linear layer, and the grid of patches."""

    mean: Tensor
    scale: Tensor
    layer: nn.Linear
    grid: tuple[int, int]

    def pixels(self, patches: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits (B, H, W, C) of patches (B, N, E)."""
        rows = (patches.to(self.mean.device).float() - self.mean) / self.scale
        return _upsample(self.layer(rows).unflatten(1, self.grid), size)


def _loss(classifier: _Classifier, patches: Tensor, masks: Tensor) -> Tensor:
    """Return the mean cross-entropy of the pixels (B, S, S) that are not void; 0 if none."""
    height, width = masks.shape[1:]
    pixels, labels = classifier.pixels(patches, (height, width)), masks.long().flatten()
    # Flatten: on a GPU the cross-entropy of (B, C, H, W) sums in no fixed order.
    total = F.cross_entropy(pixels.flatten(0, 2), labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp_min(1)


def _predicted_masks(
    test: Masked, classifier: _Classifier, classes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the predicted and the true mask (H, W) of each test image."""
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
    """Return all training masks (n, size, size) uint8."""
    masks = torch.empty(len(train.patches), size, size, dtype=torch.uint8)
    for place in range(len(masks)):
        mask = _nearest(_checked(train.mask(place), place, classes), size, size)
        masks[place] = torch.from_numpy(mask.copy())
    if (masks == VOID).all():
        raise ValueError("train: all pixels are void: nothing to train on")
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
    """Return mean and standard deviation (E,) over all patches, in chunks of images."""
    count = patches.shape[0] * patches.shape[1]
    parts = patches.split(64)
    mean = torch.stack([p.double().sum(dim=(0, 1)) for p in parts]).sum(dim=0) / count
    square = torch.stack([(p.double() - mean).square().sum(dim=(0, 1)) for p in parts])
    scale = (square.sum(dim=0) / count).sqrt()
    scale[scale == 0] = 1  # a constant feature becomes 0
    return mean.float(), scale.float()


def _draws(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Yield the image indices of each step; each epoch has a new order."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:size]
        left = left[size:]


def _upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample (B, rows, columns, C) to (B, H, W, C), as `F.interpolate(mode="bilinear")`.

    Matrix products sum their gradient in a fixed order on a GPU; interpolate does not.
    """
    down = _weights(size[0], logits.shape[1]).to(logits.device)  # (H, rows)
    across = _weights(size[1], logits.shape[2]).to(logits.device)  # (W, columns)
    wide = torch.einsum("wc,brcq->brwq", across, logits)
    return torch.einsum("hr,brwq->bhwq", down, wide)


@lru_cache(maxsize=256)
def _weights(size: int, cells: int) -> Tensor:
    """Return the weight of each cell in each pixel (size, cells)."""
    return F.interpolate(torch.eye(cells)[None], size=size, mode="linear")[0].T
