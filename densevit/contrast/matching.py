"""Which patch of view 2 is the positive of each patch of view 1."""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def match(f1: Tensor, f2: Tensor) -> Tensor:
    """For each patch of view 1, the patch of view 2 with the highest cosine similarity.

    Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", section 3.4
    (dense correspondence across views). Several patches may share a match. Both sides are
    normalised: without that of f2 its longest patches would attract the matches.

    Args:
        f1: (B, Q, E) features of all or some patches of view 1, of any norm.
        f2: (B, N, E) features of the patches of view 2.

    Returns:
        (B, Q) int64 indices into the patches of f2; compared in float32, even under autocast.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if f1.ndim != 3:
        raise ValueError(f"f1 must be (B, Q, E), got {tuple(f1.shape)}")
    if f2.ndim != 3 or (f2.shape[0], f2.shape[2]) != (f1.shape[0], f1.shape[2]):
        wanted = f"({f1.shape[0]}, N, {f1.shape[2]})"
        raise ValueError(f"f2 must be {wanted} for f1 {tuple(f1.shape)}, got {tuple(f2.shape)}")
    with torch.autocast(f1.device.type, enabled=False):
        f1, f2 = F.normalize(f1.float(), dim=2), F.normalize(f2.float(), dim=2)
        return (f1 @ f2.transpose(1, 2)).argmax(dim=2)  # (B, Q, E) x (B, E, N) -> (B, Q)


def random_match(
    batch: int,
    patches: int,
    generator: torch.Generator | None,
    device: torch.device | str,
) -> Tensor:
    """(B, N) int64 indices, each drawn uniformly and independently from the N patches.

    The control for `match`. Drawn where the generator lives and then moved, so that a CPU generator
    gives the same indices on every device.

    Raises:
        ValueError: patches is below 1.
    """
    if patches < 1:
        raise ValueError(f"patches must be at least 1, got {patches}")
    source = device if generator is None else generator.device
    return torch.randint(patches, (batch, patches), generator=generator, device=source).to(device)
