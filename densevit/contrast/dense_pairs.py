"""The dense loss: a query for each patch (DenseCL; Wang et al., CVPR 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from densevit.config.run_config import RunConfig
from densevit.contrast.matching import match, random_match
from densevit.contrast.pairs import (
    PairFunctions,
    Pairs,
    PatchMatches,
    View,
    pooled_keys,
    project_keys,
    take,
    unit,
)
from densevit.contrast.random_draws import Draws
from densevit.contrast.sampling import sample


def make_pairs(
    config: RunConfig,
    view1: View,
    view2: View,
    draws: Draws,
    true_matches: Tensor | None,
) -> Pairs:
    """Pair patches (B, N, E) of view 1 with those of view 2, by `correspondence_features`."""
    raw = project_keys(view2.head, view2.tokens.patches)  # (B, N, D)
    keys = unit(raw)
    patches = view1.tokens.patches
    batch, count, _ = patches.shape
    query_index = _query_index(config, patches, draws)
    if query_index.shape[1] < count:
        patches = take(patches, query_index)  # (B, Q, E)
    queries = unit(view1.head(patches))  # (B, Q, D)
    features = config.correspondence_features
    if features == "backbone":
        positive_index = match(patches, view2.tokens.patches)  # (B, Q)
    elif features == "dense":
        positive_index = match(queries, keys)
    elif features == "random":
        drawn = random_match(batch, keys.shape[1], draws, keys.device)
        positive_index = drawn[:, : query_index.shape[1]]
    elif true_matches is None:
        raise ValueError("true_matches must be given for correspondence_features 'geometry'")
    else:
        positive_index = true_matches.gather(1, query_index)
    positives = take(keys, positive_index.clamp_min(0))  # (B, Q, D)
    matches = PatchMatches(query_index, positive_index, features == "geometry")
    return Pairs(queries.flatten(0, 1), positives.flatten(0, 1), raw, matches)


def _query_index(config: RunConfig, patches: Tensor, draws: Draws) -> Tensor:
    """Return the query indices (B, Q) into patches (B, N, ...); the first draw of the loss."""
    batch, count, _ = patches.shape
    if config.query_patches == "all":
        return torch.arange(count, device=patches.device).expand(batch, -1)  # (B, N)
    return sample(patches, config.query_patches, "random", generator=draws)


def _uses_true_matches(config: RunConfig) -> bool:
    return config.correspondence_features == "geometry"


def _count_matched(config: RunConfig, true_matches: Tensor, draws: Draws) -> Tensor:
    query_index = _query_index(config, true_matches.unsqueeze(2), draws)
    return (true_matches.gather(1, query_index) >= 0).sum()


def _queue_keys(config: RunConfig, pairs: Pairs, queue: Tensor, draws: Draws) -> Tensor:
    """Return the keys that enter the queue: sampled patches, or one pooled key per image."""
    if config.dense_negatives == "pooled":
        return pooled_keys(config, pairs, queue, draws)
    keys = unit(pairs.keys)
    sampled = sample(
        keys, config.sampled_patches, config.sampling_strategy, queue=queue, generator=draws
    )
    return take(keys, sampled)


FUNCTIONS = PairFunctions(make_pairs, _queue_keys, _uses_true_matches, _count_matched)
