"""The highest values of rows, in an order that does not depend on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def highest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest values of each row (a, b) and their indices; ties go to the first.

    `topk` returns any of several equal values: logits in half precision are often equal, features
    that have collapsed always.
    """
    if k >= values.shape[1]:
        return values.sort(dim=1, descending=True, stable=True)
    found, place = values.topk(k + 1, dim=1)
    tied = found[:, k - 1] == found[:, k]
    place = place[:, :k].sort(dim=1).values
    if tied.any():
        place[tied] = _first_of_equal(values[tied], found[tied, k - 1 : k], k)
    found, order = values.gather(1, place).sort(dim=1, descending=True, stable=True)
    return found, place.gather(1, order)


def _first_of_equal(values: Tensor, least: Tensor, k: int) -> Tensor:
    """Return sorted indices (a, k) of values above the k-th highest (a, 1) and the first ties."""
    above, equal = values > least, values == least
    missing = k - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= missing))
    return chosen.nonzero()[:, 1].view(-1, k)
