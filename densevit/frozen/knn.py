"""Classification by the nearest neighbours among frozen features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.frozen.features import full_precision

_TEST_ROWS = 2048


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
    """Scores of the classes: each of the k nearest training pictures votes for its own.

    Nearest is of the highest cosine similarity s, and a vote weighs exp(s / temperature): Wu et
    al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018), section
    3.4; k = 20 is what Caron et al., "Emerging Properties in Self-Supervised Vision Transformers"
    (2021), found best. Of equally similar neighbours the first ones count; of equal scores the
    argmax is the first class.

    Blocks of test rows meet blocks of training rows, and each test row keeps its best k so far:
    besides the features and the scores this takes about twice `block_bytes`, whatever M and n are.
    Another block size may change similarities by the rounding of a float32 product.

    Args:
        train: (M, E) features, of any norm and floating type; compared in float32.
        train_labels: (M,) int64, in [0, classes).
        test: (n, E) features.
        k: clipped to M.
        block_bytes: of the similarities that are held at a time.
        device: where the blocks are compared; that of `train` if left out.
        boundary: called before each block of test rows.

    Returns:
        (n, classes) float32 on the CPU: sums of the votes, 0 for a class without one.

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
            asked = _unit(test[begin : begin + height], device)  # (a, E)
            similarity, place = _nearest(asked, train, k, width)
            votes = (similarity / temperature).exp()
            scores[begin : begin + height] = _summed(votes, train_labels[place], classes).cpu()
    return scores


def _check(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int) -> None:
    if train.ndim != 2 or len(train) == 0:
        raise ValueError(f"train must be (M, E) with M > 0, got {tuple(train.shape)}")
    if test.ndim != 2 or test.shape[1] != train.shape[1]:
        raise ValueError(f"test must be (n, {train.shape[1]}), got {tuple(test.shape)}")
    if labels.shape != train.shape[:1]:
        raise ValueError(f"train_labels must be ({len(train)},), got {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"train_labels must lie in [0, {classes})")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _unit(rows: Tensor, device: torch.device) -> Tensor:
    return F.normalize(rows.to(device).float(), dim=1)


def _nearest(asked: Tensor, train: Tensor, k: int, width: int) -> tuple[Tensor, Tensor]:
    """Similarities and places (a, k) of the nearest rows of `train`, block after block."""
    best = asked.new_empty(len(asked), 0)
    place = torch.empty(len(asked), 0, dtype=torch.int64, device=asked.device)
    for begin in range(0, len(train), width):
        found, where = _top(asked @ _unit(train[begin : begin + width], asked.device).T, k)
        # Earlier rows stand first, and a stable sort leaves them before equal ones.
        best, order = torch.cat([best, found], dim=1).sort(dim=1, descending=True, stable=True)
        place = torch.cat([place, where + begin], dim=1).gather(1, order[:, :k])
        best = best[:, :k]
    return best, place


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row (a, b) and their places; of equal ones the first, in order.

    `topk` takes any of equal ones. That matters in rows where the k-th equals the next one: rare,
    unless the features have collapsed.
    """
    if k >= similarity.shape[1]:
        return similarity.sort(dim=1, descending=True, stable=True)
    values, place = similarity.topk(k + 1, dim=1)
    tied = values[:, k - 1] == values[:, k]
    place = place[:, :k].sort(dim=1).values
    if tied.any():
        place[tied] = _first_of_equal(similarity[tied], values[tied, k - 1 : k], k)
    values, order = similarity.gather(1, place).sort(dim=1, descending=True, stable=True)
    return values, place.gather(1, order)


def _first_of_equal(similarity: Tensor, least: Tensor, k: int) -> Tensor:
    """Places (a, k), in order, of all that exceed the k-th highest (a, 1), and of the first equal
    ones to fill up."""
    above, equal = similarity > least, similarity == least
    wanted = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= wanted))
    return chosen.nonzero()[:, 1].view(-1, k)


def _summed(votes: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(a, classes) sums of votes (a, k); neighbour after neighbour, so always in one order."""
    scores = votes.new_zeros(len(votes), classes)
    for vote, label in zip(votes.split(1, dim=1), labels.split(1, dim=1), strict=True):
        scores.scatter_(1, label, scores.gather(1, label) + vote)
    return scores
