"""Sampling of the patches of an image that enter the queue."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.contrast.precision import without_autocast
from densevit.contrast.random_draws import Draws, uniform

Strategy = Literal["random", "diverse", "hardest"]


@torch.no_grad()
def sample(
    keys: Tensor,
    n: int,
    strategy: Strategy,
    queue: Tensor | None = None,
    generator: Draws | None = None,
) -> Tensor:
    """Sample n different patches of every image.

    - `random`: uniformly, without replacement.
    - `diverse`: farthest-point sampling on the cosine distance, from a random first patch
      (Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985). On the unit
      sphere, the largest distance from a patch to its nearest chosen patch is at most twice the
      minimum over all choices of n patches.
    - `hardest`: the patches with the lowest mean cosine to the queue.

    Args:
        keys: (B, N, D) patch features, of any norm.
        n: patches per image, 1 <= n <= N.
        strategy: one of the three above.
        queue: (K, D) L2-normalized features; needed by `hardest`, ignored otherwise.
        generator: draws the random numbers, on its own device; None is torch's default generator.
            For a batch processed in parts see `contrast.random_draws`.

    Returns:
        (B, n) int64 indices into the N patches, in arbitrary order. Similarities are computed in
        float32, even under autocast.

    Raises:
        ValueError: n is out of range, the strategy is unknown, or a shape does not fit.
    """
    if keys.ndim != 3:
        raise ValueError(f"keys must be (B, N, D), got {tuple(keys.shape)}")
    batch, patches, dim = keys.shape
    if not 1 <= n <= patches:
        raise ValueError(f"n must be between 1 and the {patches} patches of an image, got {n}")
    with without_autocast(keys.device.type):
        if strategy == "random":
            return uniform(batch, patches, generator, keys.device).argsort(dim=1)[:, :n]
        if strategy == "diverse":
            first = uniform(batch, patches, generator, keys.device).argmax(dim=1)
            return _farthest(F.normalize(keys.float(), dim=2), n, first)
        if strategy == "hardest":
            if queue is None:
                raise ValueError("queue must be given for strategy 'hardest'")
            if queue.ndim != 2 or queue.shape[1] != dim or len(queue) == 0:
                raise ValueError(
                    f"queue must be (K, {dim}) with K >= 1 for keys {tuple(keys.shape)}, "
                    f"got {tuple(queue.shape)}"
                )
            # The mean cosine to unit vectors is the dot product with their mean.
            mean_cosine = F.normalize(keys.float(), dim=2) @ queue.float().mean(dim=0)  # (B, N)
            # Stable: of equal patches the first are taken, on every device.
            return mean_cosine.sort(dim=1, stable=True).indices[:, :n]
    raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")


def _farthest(keys: Tensor, n: int, first: Tensor) -> Tensor:
    """Return indices (B, n): `first` (B,), then always the patch farthest from those chosen.

    keys: (B, N, D), L2-normalized.
    """
    chosen = [first]
    images = torch.arange(len(keys), device=keys.device)
    nearest = keys.new_full(keys.shape[:2], -1.0)  # (B, N), highest cosine to a chosen patch
    for _ in range(n - 1):
        last = keys[images, chosen[-1]]  # (B, D)
        similarity = (keys @ last.unsqueeze(2)).squeeze(2)  # (B, N, D) x (B, D, 1) -> (B, N)
        nearest = torch.maximum(nearest, similarity)
        # Infinity keeps a patch from being chosen again when all cosines are near 1. Assignment by
        # index would wait for the GPU.
        nearest.scatter_(1, chosen[-1].unsqueeze(1), torch.inf)
        chosen.append(nearest.argmin(dim=1))
    return torch.stack(chosen, dim=1)  # n x (B,) -> (B, n)
