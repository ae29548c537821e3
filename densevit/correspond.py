"""Which patches of two views of a picture a network takes for each other, to be looked at.

The numbers behind pictures like figure 4 of Wang et al., "Dense Contrastive Learning for
Self-Supervised Visual Pre-Training" (2021); `densevit.results.matches` draws them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from densevit.contrast.matching import match, true_match
from densevit.data.pictures import Picture
from densevit.data.views import RECIPES, cut_views, draw_view
from densevit.errors import UserError
from densevit.model import DenseViT

Features = Literal["backbone", "dense"]

_SHARED = 1 / 3  # of what both crops cover together, the least that both must show
_TRIES = 100  # for two square pictures in three, one is enough


class Views(NamedTuple):
    """Two crops of a picture as one looks at them.

    pixels: (2, S, S, 3) uint8, not normalised: each network has its own mean and std.
    places: (2, 4) float32, what each shows of the picture (see `data.views.Crop.place`).
    """

    pixels: NDArray[np.uint8]
    places: NDArray[np.float32]


@dataclass(frozen=True)
class Correspondences:
    """Each of the N patches of view 1, row by row, and its match in view 2.

    views: the pictures. grid: rows and columns of patches; N is their product.
    partner: (N,) int64, the patch of view 2 that is most similar.
    similarity: (N,) float32, the cosine of the two.
    truth: (N,) int64, the patch of view 2 that covers the same place; -1 where it shows no such.
    right: (N,) bool, whether the partner is the true one or one of the up to eight around it;
        False where there is none. The rule of `contrast.matching.match_quality`.
    """

    views: Views
    grid: tuple[int, int]
    partner: NDArray[np.int64]
    similarity: NDArray[np.float32]
    truth: NDArray[np.int64]
    right: NDArray[np.bool_]

    @property
    def precision(self) -> float:
        """Share of right matches among the patches that have a true one; NaN where none has."""
        exist = int((self.truth >= 0).sum())
        return int(self.right.sum()) / exist if exist else float("nan")


def views_of(picture: Picture, size: int, seed: int = 0) -> Views:
    """Two crops (S = `size`) of a picture, drawn as those of a run; equal seed, equal crops.

    They keep their colours, so that one sees the picture as it is; precision is therefore not that
    of a run's probe, whose colours change. Drawn again until a third of what both cover together is
    in both; otherwise some would show hardly any true match. No network has a say in it. The
    picture is decoded; call it once.

    Errors: `UserError` naming the file if it is truncated.
    """
    chosen = next((turn for turn in range(_TRIES) if _overlap(picture, seed, turn) >= _SHARED), 0)
    crops = cut_views(picture, size, _draws(seed, chosen))
    return Views(
        np.stack([crop.pixels for crop in crops]),
        np.array([crop.place for crop in crops], dtype=np.float32),
    )


def correspondences(model: DenseViT, views: Views, *, features: Features) -> Correspondences:
    """The matches of a network between two views, by the cosine of their patches.

    `features`: of the backbone, or of the dense projection head. Both views go through this
    network (in a run, view 2 may go through its moving average). Works where the network lies, in
    evaluation mode, which is undone afterwards.

    Errors: `UserError` for dense features of a network without that head.
    """
    patches = _patches(model, views.pixels, features)
    partner = match(patches[:1], patches[1:])[0]
    unit1, unit2 = F.normalize(patches, dim=2)
    place1, place2 = torch.as_tensor(views.places).split(1)
    truth = true_match(place1, place2, model.grid)[0].numpy()
    return Correspondences(
        views=views,
        grid=tuple(model.grid),
        partner=partner.numpy(),
        similarity=(unit1 * unit2[partner]).sum(dim=1).numpy(),
        truth=truth,
        right=_right(partner.numpy(), truth, model.grid[1]),
    )


def patch_similarity(
    model: DenseViT, pixels: NDArray[np.uint8], patch: int, *, features: Features = "backbone"
) -> NDArray[np.float32]:
    """Cosine of one patch of a picture (S, S, 3) uint8 to each: (rows, columns).

    `patch` counts row by row. Errors: `ValueError` if there is no such patch, `UserError` as in
    `correspondences`.
    """
    rows, columns = model.grid
    if not 0 <= patch < rows * columns:
        raise ValueError(f"patch must be from 0 to {rows * columns - 1}, got {patch}")
    unit = F.normalize(_patches(model, pixels[None], features)[0], dim=1)  # (N, E)
    return (unit @ unit[patch]).view(rows, columns).numpy()


def _draws(seed: int, turn: int) -> random.Random:
    return random.Random(f"{seed} {turn}")


def _overlap(picture: Picture, seed: int, turn: int) -> float:
    """Intersection over union of the crops that `cut_views` would cut, without decoding."""
    draws = _draws(seed, turn)
    boxes = [draw_view(recipe, picture.size, draws)[0] for recipe in RECIPES]
    x1, y1, x2, y2 = np.array([[min(x, r), t, max(x, r), b] for x, t, r, b in boxes]).T
    both = max(0.0, min(x2) - max(x1)) * max(0.0, min(y2) - max(y1))
    return both / (((x2 - x1) * (y2 - y1)).sum() - both)


def _patches(model: DenseViT, pixels: NDArray[np.uint8], features: Features) -> Tensor:
    """Features (B, N, E) of the patches of pictures (B, S, S, 3), float32 on the CPU."""
    if features == "dense" and "dense" not in model.heads:
        raise UserError("features: dense: this run has no dense head; take backbone")
    wanted, device = model.pictures(), next(model.parameters()).device
    mean, std = (torch.tensor(wanted[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = torch.tensor(pixels).permute(0, 3, 1, 2) / 255  # (B, 3, S, S)
    with _evaluating(model), torch.inference_mode():
        patches = model(((images - mean) / std).to(device)).patches
        if features == "dense":
            patches = model.heads["dense"](patches)
        return patches.float().cpu()


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _right(partner: NDArray, truth: NDArray, columns: int) -> NDArray[np.bool_]:
    down = abs(partner // columns - truth // columns)
    across = abs(partner % columns - truth % columns)
    return (truth >= 0) & (down <= 1) & (across <= 1)
