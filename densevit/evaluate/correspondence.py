"""Correspondence between the patches of two views of an image, by a network's features.

Data for plots like figure 4 of Wang et al., "Dense Contrastive Learning for Self-Supervised Visual
Pre-Training" (2021), and figure 1 of Caron et al., "Emerging Properties in Self-Supervised Vision
Transformers" (2021); `densevit.results.figures.correspondence` draws them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from densevit.contrast.matching import match, true_match
from densevit.data.crops import RECIPES, cut_views, draw_view
from densevit.data.image import Images, LazyImage
from densevit.evaluate.correspondence_file import Correspondences, Views, write_matches
from densevit.models.vit import DenseViT
from densevit.utils.errors import UserError

KEPT = 3  # images whose matches a run stores
GOLDEN = (5**0.5 - 1) / 2

_SHARED = 1 / 3  # minimum intersection over union of the two crops
_TRIES = 100  # for two square images in three, one is enough


def views_of(image: LazyImage, size: int, seed: int = 0) -> Views:
    """Cut two crops (S = `size`) of an image as in training; equal seeds give equal crops.

    Colors are not augmented, so that the image looks natural; precision therefore differs from that
    of a run's health batch, whose colors change. Crops are redrawn until their intersection over
    union is a third; otherwise some would have hardly any true match. The draw depends on no
    network. The image is decoded: call this once.

    Errors: `UserError` that names the file if it is truncated.
    """
    chosen = next((turn for turn in range(_TRIES) if _overlap(image, seed, turn) >= _SHARED), 0)
    crops = cut_views(image, size, _draws(seed, chosen))
    return Views(
        np.stack([crop.pixels for crop in crops]),
        np.array([crop.place for crop in crops], dtype=np.float32),
    )


def keep_matches(path: Path, model: DenseViT, images: Images) -> None:
    """Write the matches of `KEPT` images, spread over a set, unless the file exists.

    They use backbone features, which every arm of an ablation has.
    """
    if path.exists():
        return
    count = min(KEPT, len(images))
    # Not evenly spaced: if classes repeat with that period, all images would be of one class.
    chosen = [images.image(int((i + 1) * GOLDEN % 1 * len(images))) for i in range(count)]
    found = [
        correspondences(model, views_of(image, model.image_size, seed), features="backbone")
        for seed, image in enumerate(chosen)
    ]
    write_matches(path, found)


def correspondences(model: DenseViT, views: Views, *, features: str) -> Correspondences:
    """Match the patches of two views by the cosine of a network's features.

    `features` is `backbone`, or the kind of loss whose head projects the patches. Both views go
    through this network (in training, view 2 may go through its moving average). Runs on the
    network's device in evaluation mode, and restores the mode.

    Errors: `UserError` for a network without that head.
    """
    patches = patch_features(model, views.pixels, features)
    partner = match(patches[:1], patches[1:])[0]
    unit1, unit2 = F.normalize(patches, dim=2)
    place1, place2 = torch.as_tensor(views.places).split(1)
    truth = true_match(place1, place2, model.grid)[0].numpy()
    return Correspondences(
        views=views,
        grid=model.grid,
        partner=partner.numpy(),
        similarity=(unit1 * unit2[partner]).sum(dim=1).numpy(),
        truth=truth,
        right=_right(partner.numpy(), truth, model.grid[1]),
    )


def patch_similarity(
    model: DenseViT, pixels: NDArray[np.uint8], patch: int, *, features: str = "backbone"
) -> NDArray[np.float32]:
    """Return the cosine of one patch of an image (S, S, 3) uint8 to each patch: (rows, columns).

    `patch` counts row by row. Errors: `ValueError` if there is no such patch, `UserError` as in
    `correspondences`.
    """
    rows, columns = model.grid
    if not 0 <= patch < rows * columns:
        raise ValueError(f"patch must be from 0 to {rows * columns - 1}, got {patch}")
    unit = F.normalize(patch_features(model, pixels[None], features)[0], dim=1)  # (N, E)
    similarity: NDArray[np.float32] = (unit @ unit[patch]).view(rows, columns).numpy()
    return similarity


def _draws(seed: int, turn: int) -> random.Random:
    return random.Random(f"{seed} {turn}")


def _overlap(image: LazyImage, seed: int, turn: int) -> float:
    """Return intersection over union of the crops that `cut_views` would cut, without decoding."""
    draws = _draws(seed, turn)
    boxes = [draw_view(recipe, image.size, draws)[0] for recipe in RECIPES]
    x1, y1, x2, y2 = np.array([[min(x, r), t, max(x, r), b] for x, t, r, b in boxes]).T
    both = max(0.0, float(min(x2) - max(x1))) * max(0.0, float(min(y2) - max(y1)))
    areas = float(((x2 - x1) * (y2 - y1)).sum())
    return both / (areas - both)


def patch_features(model: DenseViT, pixels: NDArray[np.uint8], features: str) -> Tensor:
    """Return patch features (B, N, E) of images (B, S, S, 3), float32 on the CPU."""
    if features != "backbone" and features not in model.heads:
        raise UserError(f"features: {features}: this run has no {features} head; use backbone")
    preprocessing, device = model.preprocessing(), next(model.parameters()).device
    mean, std = (torch.tensor(preprocessing[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = torch.tensor(pixels).permute(0, 3, 1, 2) / 255  # (B, 3, S, S)
    with _evaluating(model), torch.inference_mode():
        patches: Tensor = model(((images - mean) / std).to(device)).patches
        if features != "backbone":
            patches = model.heads[features](patches)
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


def _right(partner: NDArray[np.int64], truth: NDArray[np.int64], columns: int) -> NDArray[np.bool_]:
    down = abs(partner // columns - truth // columns)
    across = abs(partner % columns - truth % columns)
    right: NDArray[np.bool_] = (truth >= 0) & (down <= 1) & (across <= 1)
    return right
