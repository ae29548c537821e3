"""Which patches of an image enter the queue."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.contrast.draws import PartDraws, uniform

Strategy = Literal["random", "diverse", "hardest"]


@torch.no_grad()
def sample(
    keys: Tensor,
    n: int,
    strategy: Strategy,
    queue: Tensor | None = None,
    generator: torch.Generator | PartDraws | None = None,
) -> Tensor:
    """Choose n different patches of every image.

    - `random`: uniformly, without replacement.
    - `diverse`: farthest-point sampling on the cosine distance, from a random first patch
      (Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985): on the unit
      sphere, the largest distance from a patch to its nearest chosen one is at most twice the
      smallest that any n patches could give.
    - `hardest`: the patches with the lowest mean cosine to the queue.

    Args:
        keys: (B, N, D) patch features, of any norm.
        n: patches per image, 1 <= n <= N.
        strategy: one of the three above.
        queue: (K, D) L2-normalised features; needed by `hardest`, ignored otherwise.
        generator: of the random draws, which happen on its device; torch's default one if None.
            See `contrast.draws` for a batch that is worked on in parts.

    Returns:
        (B, n) int64 indices into the N patches, in no order that means anything. Similarities are
        float32, even under autocast.

    Raises:
        ValueError: n is out of range, the strategy is unknown, or a shape does not fit.
    """
    if keys.ndim != 3:
        raise ValueError(f"keys must be (B, N, D), got {tuple(keys.shape)}")
    batch, patches, dim = keys.shape
    if not 1 <= n <= patches:
        raise ValueError(f"n must be between 1 and the {patches} patches of an image, got {n}")
    with torch.autocast(keys.device.type, enabled=False):
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
            # The mean of the cosines to unit vectors is the product with their mean.
            mean_cosine = F.normalize(keys.float(), dim=2) @ queue.float().mean(dim=0)  # (B, N)
            return mean_cosine.topk(n, dim=1, largest=False).indices
    raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")


def _farthest(keys: Tensor, n: int, first: Tensor) -> Tensor:
    """Indices (B, n) that begin with first (B,), each next one the farthest from all before.

    keys: (B, N, D), L2-normalised.
    """
    chosen = [first]
    images = torch.arange(len(keys), device=keys.device)
    nearest = keys.new_full(keys.shape[:2], -1.0)  # (B, N), highest cosine to a chosen patch
    for _ in range(n - 1):
        last = keys[images, chosen[-1]]  # (B, D)
        similarity = (keys @ last.unsqueeze(2)).squeeze(2)  # (B, N, D) x (B, D, 1) -> (B, N)
        nearest = torch.maximum(nearest, similarity)
        # Cosines end near 1: infinity keeps a patch from being chosen twice among equal ones. By
        # indexing, a GPU would be waited for.
        nearest.scatter_(1, chosen[-1].unsqueeze(1), torch.inf)
        chosen.append(nearest.argmin(dim=1))
    return torch.stack(chosen, dim=1)  # n x (B,) -> (B, n)
