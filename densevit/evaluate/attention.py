"""Attention maps of a ViT's blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from densevit.evaluate.correspondence import patch_features
from densevit.models.vit import DenseViT, has_class_token
from densevit.utils.errors import UserError


def depth(model: DenseViT) -> int:
    """Return the number of blocks of a network, as `attention` counts them."""
    return len(getattr(model.backbone, "blocks", ()))


def attention(model: DenseViT, pixels: NDArray[np.uint8], block: int) -> NDArray[np.float32]:
    """Return the CLS token's attention to the patches in a block: (heads, rows, columns).

    The image is (S, S, 3) uint8. A network without a CLS token represents an image by the mean of
    its patches; the result is then their mean attention. A head sums to less than 1 because tokens
    other than patches also get attention. `block` counts from 0.

    Errors: `UserError` as in `attention_weights`.
    """
    weights = attention_weights(model, pixels, block)
    backbone: Any = model.backbone
    prefix: int = backbone.num_prefix_tokens
    queries = slice(0, 1) if has_class_token(backbone) else slice(prefix, None)
    maps: NDArray[np.float32] = weights[:, queries, prefix:].mean(axis=1)
    return maps.reshape(-1, *model.grid)


def attention_weights(
    model: DenseViT, pixels: NDArray[np.uint8], block: int
) -> NDArray[np.float32]:
    """Return the attention weights of an image (S, S, 3) uint8 in a block: (heads, T, T).

    Each row is one query and sums to 1. The T tokens are timm's `num_prefix_tokens` (CLS,
    registers) and then the patches, row by row.

    Errors: `UserError` if there is no such block, or if its attention is not all tokens to all.
    """
    blocks = depth(model)
    if blocks and not 0 <= block < blocks:
        raise UserError(f"block: {block} must be from 0 to {blocks - 1}")
    backbone: Any = model.backbone  # of timm: its attributes have no types
    tokens = backbone.num_prefix_tokens + model.grid[0] * model.grid[1]
    caught: list[Tensor] = []
    for part in backbone.blocks[block].modules() if blocks else ():
        if isinstance(getattr(part, "attn_drop", None), nn.Module):
            with _unfused(part, caught):
                patch_features(model, pixels[None], "backbone")
    # Not mappable to the image: several attentions per block, windows, channels, a late CLS token.
    if len(caught) != 1 or caught[0].shape[2:] != (tokens, tokens) or len(caught[0]) != 1:
        kind = type(model.backbone).__name__
        raise UserError(f"block: {block} of this {kind} has no attention of all tokens to all")
    return caught[0][0].float().cpu().numpy()


@contextmanager
def _unfused(part: Any, caught: list[Tensor]) -> Iterator[None]:
    """Record timm's attention weights at its dropout; a fused kernel would not expose them."""
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
