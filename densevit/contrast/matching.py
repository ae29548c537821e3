"""Matching of each patch of view 1 to its positive patch of view 2."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.contrast.precision import without_autocast
from densevit.contrast.random_draws import Draws, uniform


@torch.no_grad()
def match(f1: Tensor, f2: Tensor) -> Tensor:
    """Match each patch of view 1 to the patch of view 2 with the highest cosine similarity.

    Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", section 3.4
    (dense correspondence across views). Several patches may share a match. Both inputs are
    normalized: otherwise the patches of f2 with the largest norm would attract the matches.

    Args:
        f1: (B, Q, E) features of all or some patches of view 1, of any norm.
        f2: (B, N, E) features of the patches of view 2.

    Returns:
        (B, Q) int64 indices into the patches of f2. Similarities are float32, even under autocast.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if f1.ndim != 3:
        raise ValueError(f"f1 must be (B, Q, E), got {tuple(f1.shape)}")
    if f2.ndim != 3 or (f2.shape[0], f2.shape[2]) != (f1.shape[0], f1.shape[2]):
        expected = f"({f1.shape[0]}, N, {f1.shape[2]})"
        raise ValueError(f"f2 must be {expected} for f1 {tuple(f1.shape)}, got {tuple(f2.shape)}")
    with without_autocast(f1.device.type):
        f1, f2 = F.normalize(f1.float(), dim=2), F.normalize(f2.float(), dim=2)
        return (f1 @ f2.transpose(1, 2)).argmax(dim=2)  # (B, Q, E) x (B, E, N) -> (B, Q)


def random_match(
    batch: int,
    patches: int,
    generator: Draws | None,
    device: torch.device | str,
) -> Tensor:
    """Return (B, N) int64 indices, each drawn uniformly and independently from the N patches.

    This is the control for `match`. Numbers are drawn on the generator's device and then moved, so
    a CPU generator gives the same indices on every device.

    Raises:
        ValueError: patches is below 1.
    """
    if patches < 1:
        raise ValueError(f"patches must be at least 1, got {patches}")
    drawn = uniform(batch, patches, generator, device)  # in [0, 1)
    return (drawn * patches).long().clamp_max_(patches - 1)


def true_match(view1: Tensor, view2: Tensor, grid: tuple[int, int]) -> Tensor:
    """Match each patch of view 1 to the patch of view 2 that covers the same place in the image.

    The place of a patch is its center. It follows from the crops, without any features, as in
    Pinheiro et al., "Unsupervised Learning of Dense Visual Representations" (2020).

    Args:
        view1: (B, 4), the crop of each view as `densevit.data.crops` records it: left, top, right
            and bottom in pixels of the image, with left and right swapped if it is flipped.
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
    x, y = left + across * (right - left), top + down * (bottom - top)  # (B, N), in the image
    across, down = (x - left2) / (right2 - left2), (y - top2) / (bottom2 - top2)  # in view 2
    inside = (across >= 0) & (across < 1) & (down >= 0) & (down < 1)
    row = (down * rows).long().clamp(0, rows - 1)
    column = (across * columns).long().clamp(0, columns - 1)
    return (row * columns + column).masked_fill(~inside, -1)


class MatchQuality(NamedTuple):
    """Quality of matches as shares in [0, 1], each a tensor of one element.

    precision: share of patches with a true match that are matched to it or to one of the up to
        eight patches around it. NaN if no patch has a true match.
    overlap: share of the patches of view 1 that have a true match.
    unique: different matches, counted per image, over matched patches; 1 is one-to-one.
    """

    precision: Tensor
    overlap: Tensor
    unique: Tensor


@torch.no_grad()
def match_quality(matches: Tensor, true_matches: Tensor, grid: tuple[int, int]) -> MatchQuality:
    """Compare matches (B, Q) with the true matches (B, Q) of the same patches.

    Both are indices into a grid of (rows, columns) patches; -1 is no match.
    """
    columns = grid[1]
    row_gap = (matches // columns - true_matches // columns).abs()
    column_gap = (matches % columns - true_matches % columns).abs()
    exists, made = true_matches >= 0, matches >= 0
    near = exists & made & (row_gap <= 1) & (column_gap <= 1)
    used = matches.new_zeros(len(matches), grid[0] * columns + 1, dtype=torch.bool)
    used.scatter_(1, matches + 1, True)  # column 0 collects patches without a match
    return MatchQuality(
        precision=near.sum() / exists.sum(),
        overlap=exists.float().mean(),
        unique=used[:, 1:].sum() / made.sum(),
    )


def uniform_precision(true_matches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the precision that matches drawn uniformly would have on average; see `MatchQuality`.

    A true match counts with the patches around it: nine in N, fewer at the rim. NaN if no patch of
    `true_matches` (B, Q) has a true match.
    """
    (rows, columns), places = grid, true_matches[true_matches >= 0]
    row, column = places // columns, places % columns
    high = (row + 1).clamp_max(rows - 1) - (row - 1).clamp_min(0) + 1
    wide = (column + 1).clamp_max(columns - 1) - (column - 1).clamp_min(0) + 1
    return (high * wide / (rows * columns)).mean()
