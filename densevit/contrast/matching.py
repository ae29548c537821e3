"""Which patch of view 2 is the positive of each patch of view 1."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.contrast.draws import PartDraws, uniform


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
    generator: torch.Generator | PartDraws | None,
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
    drawn = uniform(batch, patches, generator, device)  # in [0, 1)
    return (drawn * patches).long().clamp_max_(patches - 1)


def true_match(view1: Tensor, view2: Tensor, grid: tuple[int, int]) -> Tensor:
    """For each patch of view 1, the patch of view 2 that covers the same place of the picture.

    The place of a patch is its centre. Nothing is learned here: it follows from the crops, as in
    Pinheiro et al., "Unsupervised Learning of Dense Visual Representations" (2020).

    Args:
        view1: (B, 4), what `densevit.data.views` records of each view: left, top, right and bottom
            of its crop in pixels of the picture, left and right swapped when it is flipped.
        view2: (B, 4), likewise.
        grid: rows and columns of patches in a view; N is their product.

    Returns:
        (B, N) int64 indices into the patches of view 2, row by row; -1 where view 2 does not show
        the place.

    Raises:
        ValueError: a shape does not fit, or the grid is empty.
    """
    if view1.ndim != 2 or view1.shape[1] != 4:
        raise ValueError(f"view1 must be (B, 4), got {tuple(view1.shape)}")
    if view2.shape != view1.shape:
        raise ValueError(f"view2 must be {tuple(view1.shape)}, got {tuple(view2.shape)}")
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(f"grid must have at least one row and one column, got {grid}")
    centres = [
        (torch.arange(count, device=view1.device) + 0.5) / count for count in (rows, columns)
    ]
    down, across = (c.flatten() for c in torch.meshgrid(*centres, indexing="ij"))  # (N,) in [0, 1]
    left, top, right, bottom = view1.unsqueeze(2).unbind(dim=1)  # (B, 1) each
    left2, top2, right2, bottom2 = view2.unsqueeze(2).unbind(dim=1)
    x, y = left + across * (right - left), top + down * (bottom - top)  # (B, N), in the picture
    across, down = (x - left2) / (right2 - left2), (y - top2) / (bottom2 - top2)  # in view 2
    inside = (across >= 0) & (across < 1) & (down >= 0) & (down < 1)
    row = (down * rows).long().clamp(0, rows - 1)
    column = (across * columns).long().clamp(0, columns - 1)
    return (row * columns + column).masked_fill(~inside, -1)


class MatchQuality(NamedTuple):
    """Shares in [0, 1], each a tensor of one element.

    precision: of the patches whose true match exists, how many are matched to it or to one of the
        up to eight patches around it. NaN where none exists.
    overlap: how many patches of view 1 have a true match.
    unique: different matches of a picture over its number of matched patches; 1 is one-to-one.
    """

    precision: Tensor
    overlap: Tensor
    unique: Tensor


@torch.no_grad()
def match_quality(partner: Tensor, truth: Tensor, grid: tuple[int, int]) -> MatchQuality:
    """How good matches (B, Q) are, given the true ones (B, Q) of the same patches (-1: none).

    Both are indices into a grid of (rows, columns) patches; a partner of -1 counts as no match.
    """
    columns = grid[1]
    row_gap = (partner // columns - truth // columns).abs()
    column_gap = (partner % columns - truth % columns).abs()
    exists, made = truth >= 0, partner >= 0
    near = exists & made & (row_gap <= 1) & (column_gap <= 1)
    used = torch.zeros(len(partner), grid[0] * columns + 1, dtype=torch.bool, device=truth.device)
    used.scatter_(1, partner + 1, True)  # column 0 collects the patches without a match
    return MatchQuality(
        precision=near.sum() / exists.sum(),
        overlap=exists.float().mean(),
        unique=used[:, 1:].sum() / made.sum(),
    )
