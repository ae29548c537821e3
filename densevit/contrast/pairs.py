"""The functions that make a kind of contrastive loss, and the types that they exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densevit.config.run_config import RunConfig
from densevit.contrast.random_draws import Draws
from densevit.models.vit import Tokens


class EncodedView(NamedTuple):
    """One view of a batch: its tokens, and the heads that project them, one for each loss."""

    tokens: Tokens
    heads: nn.ModuleDict


class View(NamedTuple):
    """An encoded view for one kind of loss: the tokens, and its head."""

    tokens: Tokens
    head: nn.Module


class PatchMatches(NamedTuple):
    """The patches (B, Q) of view 1 that are queries, and the patch of view 2 of each; -1 is none.

    from_crops: the matches are the true ones, known without any features.
    """

    queries: Tensor
    positives: Tensor
    from_crops: bool


class Pairs(NamedTuple):
    """Queries, positives and keys of one loss.

    queries, positives: (M, D), L2-normalized; only queries carry a gradient.
    keys: (B, n, D), the projections of view 2 before normalization.
    matches: the matched patches; M is B·Q. None if queries are not patches. Queries whose match is
        -1 have no loss.
    """

    queries: Tensor
    positives: Tensor
    keys: Tensor
    matches: PatchMatches | None = None

    def matched(self) -> Tensor | None:
        """Return (M,), True where a query has a positive; None if all have one."""
        if self.matches is None or not self.matches.from_crops:
            return None
        return self.matches.positives.flatten() >= 0


def pooled_keys(config: RunConfig, pairs: Pairs, queue: Tensor, draws: Draws) -> Tensor:
    """Return one key (B, 1, D) per image, pooled after the head, as in DenseCL's queue."""
    return unit(pairs.keys.mean(dim=1, keepdim=True))


@dataclass(frozen=True)
class PairFunctions:
    """The functions of a kind of loss; its module has them as `FUNCTIONS`.

    make_pairs: (config, view 1, view 2, draws, true matches) -> `Pairs`. View 1 gives the queries,
        with gradient; view 2 the keys, without. The true matches (B, N) are those of
        `matching.true_match`, None if no loss of the run uses them.
    queue_keys: (config, pairs, queue (K, D), draws) -> the normalized keys (B, n, D) that enter the
        queue after the step.
    uses_true_matches: config -> True if `make_pairs` needs the true matches.
    count_matched: (config, true matches, draws) -> how many queries `make_pairs` will match, for a
        kind that uses true matches. It draws as `make_pairs` does.
    """

    make_pairs: Callable[[RunConfig, View, View, Draws, Tensor | None], Pairs]
    queue_keys: Callable[[RunConfig, Pairs, Tensor, Draws], Tensor] = pooled_keys
    uses_true_matches: Callable[[RunConfig], bool] = lambda config: False
    count_matched: Callable[[RunConfig, Tensor, Draws], Tensor] | None = None


def unit(features: Tensor) -> Tensor:
    """L2-normalize features in float32: the norm overflows in half precision."""
    return F.normalize(features.float(), dim=-1)


def take(features: Tensor, indices: Tensor) -> Tensor:
    """Return the rows (B, n, D) of features (B, N, D) at indices (B, n)."""
    return features.gather(1, indices.unsqueeze(2).expand(-1, -1, features.shape[2]))


@torch.no_grad()
def project_keys(head: nn.Module, tokens: Tensor) -> Tensor:
    """Return the projections (..., D) of tokens (..., E) in float32, without gradient."""
    keys: Tensor = head(tokens)
    return keys.float()
