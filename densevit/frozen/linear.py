"""A linear classifier on frozen features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.errors import RunError
from densevit.frozen.features import full_precision

log = logging.getLogger("densevit")

L2 = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_HELD_OUT = 5  # one in so many training pictures chooses among the strengths


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
    """Logits of multinomial logistic regression on standardised features.

    Minimised is the mean cross-entropy + l2 / 2 · |W|² (no penalty on the bias), by L-BFGS on all
    training pictures; scikit-learn's C is 1 / (l2 · M). Of several strengths the one is taken that
    answers most of a held-out fifth rightly (the same in every class, always the same pictures; if
    several do, the one with the lowest cross-entropy), and then fitted on all. Mean and standard
    deviation are those of all training pictures. No random numbers: equal input gives equal output.

    Gradients are summed over blocks of rows, so memory is the features' and a few `block_bytes`
    whatever M is; on a GPU the training features lie there, in the type that they have. The limit
    is time: a step takes 6 · M · E · classes operations, 3e12 for ImageNet and ViT-S, and there
    are up to `steps` for each strength and once more. That is minutes on a GPU and a day on a CPU;
    a CPU does 50,000 pictures of 100 classes in a few minutes.

    Args:
        train: (M, E) features; computed with in float32.
        train_labels: (M,) int64, in [0, classes).
        test: (n, E) features.
        l2: the strengths to choose from; a single one is just used.
        steps: the most iterations of L-BFGS for one strength.
        device: where it is fitted; that of `train` if left out.
        boundary: called before each fit: the same number of times in all processes, whose steps
            need not be equally many.

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
        data = _standardised(train.to(device), train_labels.to(device), size)
        every = torch.arange(len(train), device=device)
        best = l2[0] if len(l2) == 1 else _chosen(data, classes, l2, steps, size, boundary)
        boundary()
        model = _fitted(data, every, _zero(data, classes), best, steps, size)
        mean, scale = data.mean, data.scale
        logits = [
            model.logits((rows.to(device).float() - mean) / scale).detach().cpu()
            for rows in test.split(size)
        ]
    answer = torch.cat(logits)
    if not answer.isfinite().all():
        raise RunError("the linear probe's logits are not finite")
    return answer


class _Data(NamedTuple):
    """Training features as they are stored (M, E), labels (M,), and what standardises (E,)."""

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
    if labels.shape != train.shape[:1]:
        raise ValueError(f"train_labels must be ({len(train)},), got {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"train_labels must lie in [0, {classes})")
    if not l2 or min(l2) <= 0:
        raise ValueError(f"l2 must hold numbers above 0, got {tuple(l2)}")


def _standardised(values: Tensor, labels: Tensor, size: int) -> _Data:
    total = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    square = total.clone()
    for rows in values.split(size):
        total += rows.double().sum(dim=0)
    mean = total / len(values)
    for rows in values.split(size):
        square += (rows.double() - mean).square().sum(dim=0)
    scale = (square / len(values)).sqrt()
    scale[scale == 0] = 1  # a feature that never changes stays 0
    return _Data(values, labels, mean.float(), scale.float())


def _zero(data: _Data, classes: int) -> _Model:
    width = data.values.shape[1]
    return _Model(data.mean.new_zeros(width, classes), data.mean.new_zeros(classes))


def _chosen(
    data: _Data,
    classes: int,
    l2: Sequence[float],
    steps: int,
    size: int,
    boundary: Callable[[], None],
) -> float:
    """The strength that does best on held-out rows; each fit starts from the stronger one's."""
    held, kept = _split(data.labels)
    model, found = _zero(data, classes), []
    for strength in sorted(l2, reverse=True):
        boundary()
        model = _fitted(data, kept, model, strength, steps, size)
        right, loss = 0.0, 0.0
        with torch.no_grad():
            for places in held.split(size):
                logits, labels = model.logits(data.rows(places)), data.labels[places]
                right += float((logits.argmax(dim=1) == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        found.append((right, -loss, strength))
    right, _, best = max(found)
    log.info("linear probe: l2 %g, held-out top-1 %.1f %%", best, 100 * right / len(held))
    return best


def _split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Places of a held-out fifth, drawn by chance but evenly from the classes, and of the rest."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = shuffled.to(labels.device)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    held = torch.arange(len(labels), device=labels.device) % _HELD_OUT == 0
    return by_class[held].sort().values, by_class[~held].sort().values


def _fitted(data: _Data, places: Tensor, start: _Model, l2: float, steps: int, size: int) -> _Model:
    """Fitted on the rows at some places, from a start on."""
    model = _Model(*(part.detach().clone().requires_grad_() for part in start))
    optimiser = torch.optim.LBFGS(
        list(model), max_iter=steps, history_size=10, tolerance_grad=1e-6,
        tolerance_change=1e-9, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        penalty = l2 / 2 * model.weight.square().sum()
        penalty.backward()
        total = penalty.detach()
        for block in places.split(size):
            logits = model.logits(data.rows(block))
            part = F.cross_entropy(logits, data.labels[block], reduction="sum") / len(places)
            part.backward()
            total = total + part.detach()
        return total

    optimiser.step(loss)
    return _Model(*(part.detach() for part in model))
