"""Feature health of a run, measured on a fixed batch, the health batch.

It has the same images in the same two views for every run and step, so metrics are comparable
between steps, seeds and arms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from densevit.contrast.feature_stats import (
    alignment,
    collapsed,
    effective_rank,
    feature_std,
    uniformity,
)
from densevit.contrast.matching import match, match_quality, true_match, uniform_precision
from densevit.contrast.pairs import EncodedView
from densevit.data.batch import Batch
from densevit.train.learner import Learner, encode_keys

HEALTH_IMAGES = 64
# Rows and columns of patches from which on the precision of matches is measured. On a coarser grid
# a match within one patch is nearly always right: on 4 x 4 the same index is, in two of three.
FINE_GRID = 7


def measure_health(learner: Learner, health_batch: Batch, weight: float) -> dict[str, float]:
    """Return feature health metrics by name; undefined ones are left out.

    Every run has
        image_rank, image_rank_max: `effective_rank` of the backbone's image features of view 1
            (B, E), and the rank that they can have at most, min(B, E).
        patch_rank, patch_rank_max: the same for its patch features, (B·N, E).
        match_precision: among patches of view 1 whose place view 2 shows, the share matched to
            that place or an adjacent patch. The matches are those of the run's loss; without a
            dense loss, or if it uses true matches, those of the backbone's features. This and the
            next two only with `FINE_GRID` rows and columns of patches or more.
        match_precision_same_index, match_precision_uniform: the precision of two matchings that
            look at no feature: the patch at the same place of the grid, and any patch.
        overlap_share: the share of patches whose place view 2 shows; the same for all runs.
        unique_match_share: different matches of an image over its matched patches.
    and, for each of its contrastive losses (KIND is its name),
        KIND_effective_rank, KIND_feature_std, KIND_uniformity: of the queries (R, D); see
            `contrast.feature_stats`. KIND_effective_rank_max is min(R, D).
        KIND_alignment, KIND_positive_similarity: of queries and their positives; the latter is
            the mean cosine.
        KIND_negative_similarity: mean cosine of queries and queue, including entries of the
            query's own image.
        KIND_queue_diversity, KIND_queue_age: see `FeatureQueue`.
        collapsed: 1 if one of the losses has collapsed (see `feature_stats.collapsed`), else 0.
    and, with 0 < λ < 1 (see `gradient_balance`),
        gradient_share, gradient_cosine.
    """
    training = learner.training
    learner.eval()
    metrics = _measure_features(learner, health_batch)
    if learner.contrast is not None and 0 < weight < 1:
        part = health_batch.split(learner.config.batch_size)[0].to(_device(learner))
        metrics |= gradient_balance(learner, part, weight)
    learner.train(training)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def gradient_balance(learner: Learner, batch: Batch, weight: float) -> dict[str, float]:
    """Compare the gradients of the two losses with respect to the backbone.

    gradient_share: ‖λ·g‖ / (‖λ·g‖ + ‖(1−λ)·h‖), g the gradient of the contrastive loss and h that
        of the classification.
    gradient_cosine: of g and h; below 0 the losses conflict.
    """
    generator = _generator(batch.view1.device)
    # A compiled network supports only one backward pass.
    with torch.compiler.set_stance("force_eager"):
        losses = learner(batch, weight, generator)
    parameters = [p for p in learner.model.backbone.parameters() if p.requires_grad]
    contrastive = _gradient(losses.contrastive, parameters, keep=True)
    classification = _gradient(losses.classification, parameters, keep=False)
    dot = sum((g * h).sum() for g, h in zip(contrastive, classification, strict=True))
    ours = torch.nn.utils.get_total_norm(contrastive)
    theirs = torch.nn.utils.get_total_norm(classification)
    share = weight * ours / (weight * ours + (1 - weight) * theirs)
    return {"gradient_share": float(share), "gradient_cosine": float(dot / (ours * theirs))}


@torch.no_grad()
def _measure_features(learner: Learner, batch: Batch) -> dict[str, float]:
    parts: dict[str, list[Tensor]] = {}
    for part in batch.split(learner.config.batch_size):
        for name, rows in _features(learner, part.to(_device(learner))).items():
            parts.setdefault(name, []).append(rows)
    features = {name: torch.cat(rows) for name, rows in parts.items()}
    metrics = {
        **_rank("image_rank", features["image"]),
        **_rank("patch_rank", features["patches"]),
        **_matching(features, learner.model.grid),
    }
    if learner.contrast is None:
        return metrics
    alarms = []
    for kind in learner.contrast.weights:
        queries, positives = features[f"{kind}_queries"], features[f"{kind}_positives"]
        queue = learner.contrast.queue(kind)
        alarms.append(collapsed(queries))
        metrics |= {
            **_rank(f"{kind}_effective_rank", queries),
            f"{kind}_feature_std": feature_std(queries),
            f"{kind}_uniformity": uniformity(queries),
            f"{kind}_alignment": alignment(queries, positives),
            f"{kind}_positive_similarity": float((queries * positives).sum(dim=1).mean()),
            # The mean of all cosines is the dot product of the means.
            f"{kind}_negative_similarity": float(queries.mean(dim=0) @ queue.features.mean(dim=0)),
            f"{kind}_queue_diversity": queue.diversity(),
            f"{kind}_queue_age": queue.age(),
        }
    return {**metrics, "collapsed": float(any(alarms))}


def _rank(name: str, features: Tensor) -> dict[str, float]:
    return {name: effective_rank(features), f"{name}_max": float(min(features.shape))}


def _matching(features: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, float]:
    """Return the quality of the matches, and the precision of two matchings without features."""
    true_matches = features["true_matches"]
    quality = match_quality(features["matches"], true_matches, grid)
    metrics = {"overlap_share": quality.overlap, "unique_match_share": quality.unique}
    if min(grid) >= FINE_GRID:
        same = match_quality(features["query_places"], true_matches, grid)
        metrics |= {
            "match_precision": quality.precision,
            "match_precision_same_index": same.precision,
            "match_precision_uniform": uniform_precision(true_matches, grid),
        }
    return {name: float(value) for name, value in metrics.items()}


def _features(learner: Learner, batch: Batch) -> dict[str, Tensor]:
    """Return features, queries, positives and matches of a part of the batch, one row each."""
    first, second = learner.model(batch.view1), learner.model(batch.view2)
    true_matches = true_match(batch.place1, batch.place2, learner.model.grid)
    features = {
        "image": first.image,
        "patches": first.patches.flatten(0, 1),
        "matches": match(first.patches, second.patches),
        "true_matches": true_matches,
        "query_places": torch.arange(true_matches.shape[1], device=true_matches.device).expand_as(
            true_matches
        ),
    }
    if learner.contrast is None:
        return features
    view1 = EncodedView(first, learner.model.heads)
    view2 = encode_keys(learner, batch.view2, second)
    for kind in learner.contrast.weights:
        draws = _generator(true_matches.device)
        pairs = learner.contrast.pairs(kind, view1, view2, draws, true_matches)
        queries, positives, matched = pairs.queries, pairs.positives, pairs.matched()
        if matched is not None:
            queries, positives = queries[matched], positives[matched]
        elif pairs.matches is not None:
            features["matches"] = pairs.matches.positives
            features["true_matches"] = true_matches.gather(1, pairs.matches.queries)
            features["query_places"] = pairs.matches.queries
        features[f"{kind}_queries"], features[f"{kind}_positives"] = queries, positives
    return features


def _gradient(loss: Tensor, parameters: Sequence[Tensor], *, keep: bool) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            loss, parameters, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
    )


def _generator(device: torch.device) -> torch.Generator:
    """Return a generator that gives the same numbers at every measurement."""
    return torch.Generator(device).manual_seed(0)


def _device(learner: Learner) -> torch.device:
    return next(learner.model.parameters()).device
