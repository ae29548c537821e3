"""Classification by nearest neighbors of frozen features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.evaluate.highest import highest
from densevit.evaluate.predictions import ImagePredictions
from densevit.evaluate.probes.features import full_precision
from densevit.evaluate.probes.run import ProbeInput

_TEST_ROWS = 2048


def predict(probe: ProbeInput) -> ImagePredictions:
    """Classify the test images by their nearest training images."""
    train, test = probe.train, probe.test
    votes = knn(
        train.features, train.labels, test.features, len(train.images.classes),
        device=probe.device, boundary=probe.boundary,
    )  # fmt: skip
    # The clamps keep the cross-entropy of a class without a vote finite; its rank is no accident.
    if train.labels.ndim == 2:
        return probe.class_predictions(votes.clamp(1e-6, 1 - 1e-6).logit())
    shares = votes / votes.sum(dim=1, keepdim=True)
    return probe.class_predictions(shares.clamp_min(1e-6).log(), votes)


@torch.no_grad()
def knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
    block_bytes: int = 256 * 2**20,
    device: torch.device | None = None,
    boundary: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return class scores: each of the k nearest training images votes for its class.

    Nearest means highest cosine similarity s; a vote weighs exp(s / temperature): Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018), section 3.4.
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021), found k = 20
    best. Among equally similar neighbors the first ones count; among equal scores the argmax is
    the first class.

    Blocks of test rows are compared with blocks of training rows, and each test row keeps its best
    k so far. Besides features and scores this takes about twice `block_bytes`, for any M and n.
    Another block size may change similarities by the rounding of a float32 product.

    Args:
        train: (M, E) features, of any norm and floating dtype; compared in float32.
        train_labels: (M,) int64, in [0, classes); or (M, classes), 1 for each class of an image.
        test: (n, E) features.
        k: clipped to M.
        block_bytes: size of the similarities held at a time.
        device: device of the comparison; None is that of `train`.
        boundary: called before each block of test rows.

    Returns:
        (n, classes) float32 on the CPU: sums of the votes, 0 for a class without a vote; of images
        with several classes the share of the votes that have a class.

    Raises:
        ValueError: shapes that do not fit, labels outside [0, classes), or k below 1.
    """
    _check(train, train_labels, test, classes, k)
    device = train.device if device is None else device
    k = min(k, len(train))
    height = max(1, min(_TEST_ROWS, len(test), block_bytes // 4))
    width = max(1, min(len(train), block_bytes // (4 * height)))
    train_labels = train_labels.to(device)
    scores = torch.empty(len(test), classes)
    with full_precision(device):
        for begin in range(0, len(test), height):
            boundary()
            queries = _unit(test[begin : begin + height], device)  # (a, E)
            similarity, place = _nearest(queries, train, k, width)
            votes = (similarity / temperature).exp()
            scores[begin : begin + height] = _sum_votes(votes, train_labels[place], classes).cpu()
    return scores


def _check(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int) -> None:
    if train.ndim != 2 or len(train) == 0:
        raise ValueError(f"train must be (M, E) with M > 0, got {tuple(train.shape)}")
    if test.ndim != 2 or test.shape[1] != train.shape[1]:
        raise ValueError(f"test must be (n, {train.shape[1]}), got {tuple(test.shape)}")
    if labels.shape not in (train.shape[:1], (len(train), classes)):
        raise ValueError(f"train_labels must be ({len(train)},), got {tuple(labels.shape)}")
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"train_labels must lie in [0, {classes})")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _unit(rows: Tensor, device: torch.device) -> Tensor:
    return F.normalize(rows.to(device).float(), dim=1)


def _nearest(queries: Tensor, train: Tensor, k: int, width: int) -> tuple[Tensor, Tensor]:
    """Return similarities and indices (a, k) of the nearest rows of `train`, block by block."""
    best = queries.new_empty(len(queries), 0)
    place = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for begin in range(0, len(train), width):
        block = _unit(train[begin : begin + width], queries.device)
        found, where = highest(queries @ block.T, k)
        # Earlier rows come first, and a stable sort keeps them before equal ones.
        best, order = torch.cat([best, found], dim=1).sort(dim=1, descending=True, stable=True)
        place = torch.cat([place, where + begin], dim=1).gather(1, order[:, :k])
        best = best[:, :k]
    return best, place


def _sum_votes(votes: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the sums (a, classes) of votes (a, k) for labels (a, k), always in the same order.

    Of labels (a, k, classes): the shares of the votes.
    """
    if labels.ndim == 3:
        return (votes[:, :, None] * labels).sum(dim=1) / votes.sum(dim=1, keepdim=True)
    scores = votes.new_zeros(len(votes), classes)
    for vote, label in zip(votes.split(1, dim=1), labels.split(1, dim=1), strict=True):
        scores.scatter_(1, label, scores.gather(1, label) + vote)
    return scores
