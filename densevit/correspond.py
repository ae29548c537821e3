"""Which patches of two views of a picture a network takes for each other, and which it attends to.

The numbers behind pictures like figure 4 of Wang et al., "Dense Contrastive Learning for
Self-Supervised Visual Pre-Training" (2021), and figure 1 of Caron et al., "Emerging Properties in
Self-Supervised Vision Transformers" (2021); `densevit.results.matches` draws them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from densevit.contrast.matching import match, true_match
from densevit.data.pictures import Images, Picture
from densevit.data.views import RECIPES, cut_views, draw_view
from densevit.errors import UserError
from densevit.matchfile import Correspondences, Views, write_matches
from densevit.model import DenseViT, has_class_token

Features = Literal["backbone", "dense"]

KEPT = 3  # pictures of which a run keeps matches
GOLDEN = (5**0.5 - 1) / 2

_SHARED = 1 / 3  # of what both crops cover together, the least that both must show
_TRIES = 100  # for two square pictures in three, one is enough


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


def keep_matches(path: Path, model: DenseViT, images: Images) -> None:
    """Write the matches of `KEPT` pictures, spread over a set, unless they are there.

    By the backbone's features: those that every arm of an ablation has.
    """
    if path.exists():
        return
    count = min(KEPT, len(images))
    # Not evenly spaced: with a period of the classes they would all be of one.
    pictures = [images.picture(int((i + 1) * GOLDEN % 1 * len(images))) for i in range(count)]
    found = [
        correspondences(model, views_of(picture, model.image_size, seed), features="backbone")
        for seed, picture in enumerate(pictures)
    ]
    write_matches(path, found)


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


def depth(model: DenseViT) -> int:
    """How many blocks a network has, as `attention` counts them."""
    return len(getattr(model.backbone, "blocks", ()))


def attention(model: DenseViT, pixels: NDArray[np.uint8], block: int) -> NDArray[np.float32]:
    """How each head of a block spreads the picture's attention: (heads, rows, columns).

    The CLS token's over the patches of a picture (S, S, 3) uint8. A network without that token
    takes the mean of the patches for the picture; of it, the mean of theirs. A head's sum is below
    1 by what goes to tokens that are no patches. `block` counts from 0.

    Errors: `UserError` as in `attention_weights`.
    """
    weights = attention_weights(model, pixels, block)
    prefix = model.backbone.num_prefix_tokens
    queries = slice(0, 1) if has_class_token(model.backbone) else slice(prefix, None)
    return weights[:, queries, prefix:].mean(axis=1).reshape(-1, *model.grid)


def attention_weights(
    model: DenseViT, pixels: NDArray[np.uint8], block: int
) -> NDArray[np.float32]:
    """What the T tokens of a picture (S, S, 3) uint8 attend to in a block: (heads, T, T).

    Each row, of one query, sums to 1. The tokens are timm's `num_prefix_tokens` (CLS, registers)
    and then the patches, row by row.

    Errors: `UserError` if there is no such block, or if it attends in another way.
    """
    blocks = depth(model)
    if blocks and not 0 <= block < blocks:
        raise UserError(f"block: {block} must be from 0 to {blocks - 1}")
    tokens = model.backbone.num_prefix_tokens + model.grid[0] * model.grid[1]
    caught: list[Tensor] = []
    for part in model.backbone.blocks[block].modules() if blocks else ():
        if isinstance(getattr(part, "attn_drop", None), nn.Module):
            with _unfused(part, caught):
                _patches(model, pixels[None], "backbone")
    # Several in a block, windows, channels, or no CLS token yet: nothing to lay over a picture.
    if len(caught) != 1 or caught[0].shape[2:] != (tokens, tokens) or len(caught[0]) != 1:
        kind = type(model.backbone).__name__
        raise UserError(f"block: {block} of this {kind} has no attention of all tokens to all")
    return caught[0][0].float().cpu().numpy()


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


@contextmanager
def _unfused(part: nn.Module, caught: list[Tensor]) -> Iterator[None]:
    """Catches what timm's attention drops out of, its weights, which a fused kernel never shows."""
    fused = getattr(part, "fused_attn", None)
    hook = part.attn_drop.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        if fused is not None:
            part.fused_attn = False
        yield
    finally:
        hook.remove()
        if fused is not None:
            part.fused_attn = fused


def _right(partner: NDArray, truth: NDArray, columns: int) -> NDArray[np.bool_]:
    down = abs(partner // columns - truth // columns)
    across = abs(partner % columns - truth % columns)
    return (truth >= 0) & (down <= 1) & (across <= 1)
