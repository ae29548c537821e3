"""The health of a run's features, on a fixed probe.

The probe is the same pictures in the same two views for every run and step, so that the numbers can
be compared between steps, seeds and arms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from densevit.contrast.health import (
    alignment,
    collapsed,
    effective_rank,
    feature_std,
    uniformity,
)
from densevit.contrast.losses import Projected
from densevit.contrast.matching import match, match_quality, true_match
from densevit.data.loading import Batch
from densevit.objective import Learner, encode_keys

PROBE_PICTURES = 64


def measure(learner: Learner, probe: Batch, weight: float) -> dict[str, float]:
    """The health of a run on the probe, by name; what is not defined is left out.

    Every run has
        image_rank: `effective_rank` of the backbone's image features of view 1, (P, E).
        patch_rank: the same of its patch features, (P·N, E).
        match_precision: of the patches of view 1 whose place view 2 shows, the share that is
            matched to that place or a patch beside it. The matches are those of the run's loss;
            without a dense loss, or with true matches in it, those of the backbone's features.
        overlap_share: the share of patches whose place view 2 shows; the same for all runs.
        unique_match_share: different matches of a picture over its matched patches.
    and, for each of its contrastive losses (KIND is global or dense),
        KIND_effective_rank, KIND_feature_std, KIND_uniformity: of the queries (R, D); see
            `contrast.health`.
        KIND_alignment, KIND_positive_similarity: of queries and their positives; the latter is
            the mean cosine.
        KIND_negative_similarity: mean cosine of queries and queue, the own picture's included.
        KIND_queue_diversity, KIND_queue_age: see `FeatureQueue`.
        collapsed: 1 when one of them has collapsed (see `contrast.health`), else 0.
    and, with 0 < λ < 1 (see `gradient_balance`),
        gradient_share, gradient_cosine.
    """
    training = learner.model.training, learner.averaged is not None and learner.averaged.training
    learner.model.eval()
    if learner.averaged is not None:
        learner.averaged.eval()
    numbers = _measure_features(learner, probe)
    if learner.contrast is not None and 0 < weight < 1:
        part = probe.split(learner.config.batch_size)[0].to(_device(learner))
        numbers |= gradient_balance(learner, part, weight)
    learner.model.train(training[0])
    if learner.averaged is not None:
        learner.averaged.train(training[1])
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def gradient_balance(learner: Learner, batch: Batch, weight: float) -> dict[str, float]:
    """How the two losses pull at the backbone, of which both have a gradient.

    gradient_share: ‖λ·g‖ / (‖λ·g‖ + ‖(1−λ)·h‖), g the gradient of the contrastive loss and h that
        of the classification.
    gradient_cosine: of g and h; below 0 the losses contradict each other.
    """
    generator = _generator(batch.view1.device)
    # What torch.compile makes of the network allows for one gradient, and no second one.
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
def _measure_features(learner: Learner, probe: Batch) -> dict[str, float]:
    kinds = learner.contrast.weights if learner.contrast is not None else {}
    kept: dict[str, list[Tensor]] = {}
    for batch in probe.split(learner.config.batch_size):
        for name, value in _look(learner, batch.to(_device(learner))).items():
            kept.setdefault(name, []).append(value)
    seen = {name: torch.cat(parts) for name, parts in kept.items()}
    quality = match_quality(seen["partner"], seen["truth"], learner.model.grid)
    numbers = {
        "image_rank": effective_rank(seen["image"]),
        "patch_rank": effective_rank(seen["patches"]),
        "match_precision": float(quality.precision),
        "overlap_share": float(quality.overlap),
        "unique_match_share": float(quality.unique),
    }
    alarms = []
    for kind in kinds:
        queries, positives = seen[f"{kind}_queries"], seen[f"{kind}_positives"]
        queue = learner.contrast.queues[kind]
        alarms.append(collapsed(queries))
        numbers |= {
            f"{kind}_effective_rank": effective_rank(queries),
            f"{kind}_feature_std": feature_std(queries),
            f"{kind}_uniformity": uniformity(queries),
            f"{kind}_alignment": alignment(queries, positives),
            f"{kind}_positive_similarity": float((queries * positives).sum(dim=1).mean()),
            # The mean of all cosines is the product of the means.
            f"{kind}_negative_similarity": float(queries.mean(dim=0) @ queue.features.mean(dim=0)),
            f"{kind}_queue_diversity": queue.diversity(),
            f"{kind}_queue_age": queue.age(),
        }
    if kinds:
        numbers["collapsed"] = float(any(alarms))
    return numbers


def _look(learner: Learner, batch: Batch) -> dict[str, Tensor]:
    """Features, queries, positives and matches of a part of the probe, a row each."""
    first, second = learner.model(batch.view1), learner.model(batch.view2)
    truth = true_match(batch.place1, batch.place2, learner.model.grid)
    seen = {
        "image": first.image,
        "patches": first.patches.flatten(0, 1),
        "partner": match(first.patches, second.patches),
        "truth": truth,
    }
    if learner.contrast is None:
        return seen
    view1 = Projected(first, learner.model.heads)
    keys = encode_keys(learner, batch.view2, second)
    generator = _generator(truth.device)
    for kind in learner.contrast.weights:
        pairs = learner.contrast.pairs(kind, view1, keys, generator, truth)
        queries, positives = pairs.queries, pairs.positives
        if pairs.partner is not None:
            made = pairs.partner.flatten() >= 0
            queries, positives = queries[made], positives[made]
            if learner.config.correspondence_features != "geometry":
                seen["partner"], seen["truth"] = pairs.partner, truth.gather(1, pairs.chosen)
        seen[f"{kind}_queries"], seen[f"{kind}_positives"] = queries, positives
    return seen


def _gradient(loss: Tensor, parameters: list[Tensor], *, keep: bool) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            loss, parameters, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
    )


def _generator(device: torch.device) -> torch.Generator:
    """Draws the same at every look."""
    return torch.Generator(device).manual_seed(0)


def _device(learner: Learner) -> torch.device:
    return next(learner.model.parameters()).device
