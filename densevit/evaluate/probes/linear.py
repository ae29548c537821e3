"""Linear classification of frozen features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.evaluate.predictions import ImagePredictions
from densevit.evaluate.probes.features import full_precision
from densevit.evaluate.probes.run import ProbeInput
from densevit.utils.errors import RunError

log = logging.getLogger("densevit")

L2 = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_HELD_OUT = 5  # one in this many training images is held out to select the strength


def predict(probe: ProbeInput) -> ImagePredictions:
    """Classify the test images by logistic regression on the training images."""
    train, test = probe.train, probe.test
    logits = linear_probe(
        train.features, train.labels, test.features, len(train.images.classes),
        device=probe.device, boundary=probe.boundary,
    )  # fmt: skip
    return probe.class_predictions(logits)


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    classes: int,
    *,
    l2: Sequence[float] = L2,
    steps: int = 200,
    block_bytes: int = 256 * 2**20,
    device: torch.device | None = None,
    boundary: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return test logits of multinomial logistic regression on standardized features.

    L-BFGS on all training images minimizes the mean cross-entropy + l2 / 2 · |W|² (no penalty on
    the bias); scikit-learn's C is 1 / (l2 · M). The strength with the highest accuracy on a
    held-out fifth (stratified by class, always the same images; ties go to the lowest
    cross-entropy) is refitted on all. Mean and standard deviation are those of all training
    images. The result is deterministic.

    Gradients are summed over blocks of rows: memory is the features and a few `block_bytes` for
    any M. On a GPU the training features are moved there in their dtype. The limit is time: a step
    takes 6 · M · E · classes operations, 3e12 for ImageNet and ViT-S, and there are up to `steps`
    for each strength and once more. That is minutes on a GPU and a day on a CPU; a CPU takes a few
    minutes for 50,000 images of 100 classes.

    Args:
        train: (M, E) features; converted to float32.
        train_labels: (M,) int64, in [0, classes); or (M, classes), 1 for each class of an image:
            then the sum over classes of the binary cross-entropies is minimized, and the strength
            with the lowest one on a random held-out fifth is selected.
        test: (n, E) features.
        l2: the strengths to select from; a single one is used as is.
        steps: maximum number of L-BFGS iterations per strength.
        device: device of the fit; None is that of `train`.
        boundary: called before each fit: equally often in all processes, even if their numbers of
            steps differ.

    Returns:
        (n, classes) float32 on the CPU.

    Raises:
        ValueError: shapes that do not fit, labels outside [0, classes), or less than two rows.
        RunError: the logits are not finite.
    """
    _check(train, train_labels, test, classes, l2)
    device = train.device if device is None else device
    size = max(1, block_bytes // (4 * (4 * classes + 2 * train.shape[1])))
    with torch.enable_grad(), full_precision(device):
        data = _standardized(train.to(device), train_labels.to(device), size)
        every = torch.arange(len(train), device=device)
        best = l2[0] if len(l2) == 1 else _best_strength(data, classes, l2, steps, size, boundary)
        boundary()
        model = _fitted(data, every, _zero(data, classes), best, steps, size)
        mean, scale = data.mean, data.scale
        logits = [
            model.logits((rows.to(device).float() - mean) / scale).detach().cpu()
            for rows in test.split(size)
        ]
    whole = torch.cat(logits)
    if not whole.isfinite().all():
        raise RunError("the linear probe's logits are not finite")
    return whole


class _Data(NamedTuple):
    """Training features as stored (M, E), labels (M,), mean and scale (E,) to standardize them."""

    values: Tensor
    labels: Tensor
    mean: Tensor
    scale: Tensor

    def rows(self, places: Tensor) -> Tensor:
        return (self.values[places].float() - self.mean) / self.scale


class _Model(NamedTuple):
    """Weight (E, classes) and bias (classes,)."""

    weight: Tensor
    bias: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        return rows @ self.weight + self.bias


def _check(train: Tensor, labels: Tensor, test: Tensor, classes: int, l2: Sequence[float]) -> None:
    if train.ndim != 2 or len(train) < 2:
        raise ValueError(f"train must be (M, E) with M > 1, got {tuple(train.shape)}")
    if test.ndim != 2 or test.shape[1] != train.shape[1] or len(test) == 0:
        raise ValueError(f"test must be (n, {train.shape[1]}), got {tuple(test.shape)}")
    if labels.shape not in (train.shape[:1], (len(train), classes)):
        raise ValueError(f"train_labels must be ({len(train)},), got {tuple(labels.shape)}")
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"train_labels must lie in [0, {classes})")
    if not l2 or min(l2) <= 0:
        raise ValueError(f"l2 must hold numbers above 0, got {tuple(l2)}")


def _standardized(values: Tensor, labels: Tensor, size: int) -> _Data:
    total = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    square = total.clone()
    for rows in values.split(size):
        total += rows.double().sum(dim=0)
    mean = total / len(values)
    for rows in values.split(size):
        square += (rows.double() - mean).square().sum(dim=0)
    scale = (square / len(values)).sqrt()
    scale[scale == 0] = 1  # a constant feature becomes 0
    return _Data(values, labels, mean.float(), scale.float())


def _zero(data: _Data, classes: int) -> _Model:
    width = data.values.shape[1]
    return _Model(data.mean.new_zeros(width, classes), data.mean.new_zeros(classes))


def _best_strength(
    data: _Data,
    classes: int,
    l2: Sequence[float],
    steps: int,
    size: int,
    boundary: Callable[[], None],
) -> float:
    """Select the best strength on held-out rows; each fit starts from that of the stronger one."""
    held_out, rest = _split(data.labels)
    model, found = _zero(data, classes), []
    for strength in sorted(l2, reverse=True):
        boundary()
        model = _fitted(data, rest, model, strength, steps, size)
        right, loss = 0.0, 0.0
        with torch.no_grad():
            for places in held_out.split(size):
                logits, labels = model.logits(data.rows(places)), data.labels[places]
                if labels.ndim == 1:  # of several classes the loss alone decides
                    right += float((logits.argmax(dim=1) == labels).sum())
                loss += float(_cross_entropy(logits, labels))
        found.append((right, -loss, strength))
    right, loss, best = max(found)
    if data.labels.ndim == 1:
        reached = f"top-1 {100 * right / len(held_out):.1f} %"
    else:
        reached = f"cross-entropy {-loss / len(held_out):.3f}"
    log.info("linear probe: l2 %g, held-out %s", best, reached)
    return best


def _split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of a random held-out fifth and of the rest, stratified by class if each
    image has one."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = shuffled.to(labels.device)
    by_class = shuffled
    if labels.ndim == 1:
        by_class = shuffled[labels[shuffled].argsort(stable=True)]
    held_out = torch.arange(len(labels), device=labels.device) % _HELD_OUT == 0
    return by_class[held_out].sort().values, by_class[~held_out].sort().values


def _fitted(data: _Data, places: Tensor, start: _Model, l2: float, steps: int, size: int) -> _Model:
    """Fit on the rows at `places`, starting from the model `start`."""
    model = _Model(*(part.detach().clone().requires_grad_() for part in start))
    optimizer = torch.optim.LBFGS(
        list(model), max_iter=steps, history_size=10, tolerance_grad=1e-6,
        tolerance_change=1e-9, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = l2 / 2 * model.weight.square().sum()
        penalty.backward()
        total = penalty.detach()
        for block in places.split(size):
            logits = model.logits(data.rows(block))
            part = _cross_entropy(logits, data.labels[block]) / len(places)
            part.backward()
            total = total + part.detach()
        return total

    optimizer.step(loss)
    return _Model(*(part.detach() for part in model))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over images of the cross-entropy of labels (M,) or (M, classes)."""
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
    return F.cross_entropy(logits, labels, reduction="sum")
