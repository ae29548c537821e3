"""The contrastive loss of a run: its queues, its temperature, and one call a step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densevit.config import TEMPERATURE_RANGE, RunConfig, loss_weights
from densevit.contrast.draws import PartDraws
from densevit.contrast.info_nce import queue_info_nce
from densevit.contrast.matching import match, random_match
from densevit.contrast.queue import FeatureQueue
from densevit.contrast.sampling import sample
from densevit.model import Tokens


class Projected(NamedTuple):
    """One view of a batch: its tokens, and the heads (`global`, `dense`) that project them."""

    tokens: Tokens
    heads: nn.ModuleDict


class Pairs(NamedTuple):
    """The queries of one loss and what belongs to each of them.

    queries, positives: (M, D), L2-normalised; only queries carry a gradient.
    keys: (B, n, D), the projections of view 2 before they are normalised; n is 1 for global.
    chosen: (B, Q), the patches of view 1 that are queries; partner: (B, Q), the patch of view 2
        that is the positive of each, -1 for none. M is B·Q. Both None for global.
    """

    queries: Tensor
    positives: Tensor
    keys: Tensor
    chosen: Tensor | None = None
    partner: Tensor | None = None


class ContrastiveLosses(NamedTuple):
    """The loss of a step, a scalar with gradient, and its parts (`global`, `dense`) without.

    keys: for each of them the features (M, D) and image ids (M,) that are to enter its queue.
    """

    total: Tensor
    parts: dict[str, Tensor]
    keys: dict[str, tuple[Tensor, Tensor]]


class ContrastiveLoss(nn.Module):
    """InfoNCE of images (global), of patches (dense) or of both (joint) against queues.

    Queries come from view 1 with gradient, keys from view 2 without. The negatives are the queue
    as it stood before the batch: a step never sees its own keys. Joint is DenseCL's
    (1−w)·global + w·dense, w = `joint_dense_weight`, with a head and a queue for each
    (Wang et al., section 3.3); a loss of weight 0 is not computed.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = loss_weights(config)
        self.queues = nn.ModuleDict(
            {kind: FeatureQueue(config.queue_size, config.dense_dim) for kind in self.weights}
        )
        start = torch.tensor(math.log(config.temperature))
        self.log_temperature = nn.Parameter(start) if config.learnable_temp else None

    def temperature(self) -> Tensor | float:
        """The softmax's temperature; a tensor with gradient when it is learned."""
        if self.log_temperature is None:
            return self.config.temperature
        return self.log_temperature.exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep a learned temperature within TEMPERATURE_RANGE; call after the optimiser's step."""
        if self.log_temperature is not None:
            low, high = TEMPERATURE_RANGE
            self.log_temperature.clamp_(math.log(low), math.log(high))

    def forward(
        self,
        view1: Projected,
        view2: Projected,
        image_ids: Tensor,
        generator: torch.Generator | PartDraws,
        truth: Tensor | None = None,
        matched: Tensor | None = None,
    ) -> ContrastiveLosses:
        """The mean loss over all queries, against the queues as they are.

        Args:
            view1: gives the queries.
            view2: gives the keys, with the heads of the network that encoded it.
            image_ids: (B,), which pictures these are.
            generator: of all that is drawn.
            truth: (B, N) of `true_match`, needed by `correspondence_features: geometry`.
            matched: what the sum over matched queries is divided by; their number if None. For a
                part of a batch, their mean number a part (see `count_matched`).
        """
        pairs = {kind: self.pairs(kind, view1, view2, generator, truth) for kind in self.weights}
        losses = {kind: self._loss(kind, pairs[kind], image_ids, matched) for kind in self.weights}
        keys = {k: self._chosen_keys(k, pairs[k], image_ids, generator) for k in self.weights}
        total = sum(weight * losses[kind] for kind, weight in self.weights.items())
        parts = {kind: loss.detach() for kind, loss in losses.items()}
        return ContrastiveLosses(total, parts, keys)

    def enqueue(self, parts: list[dict[str, tuple[Tensor, Tensor]]]) -> None:
        """Let the keys of a step enter the queues: those of each part of its batch, in order."""
        for kind, queue in self.queues.items():
            features, ids = zip(*(part[kind] for part in parts), strict=True)
            queue.enqueue(torch.cat(features), torch.cat(ids))

    def count_matched(self, truth: Tensor, generator: torch.Generator | PartDraws) -> Tensor:
        """How many queries of a part of a batch have a true match: what `forward` will draw."""
        chosen = self._queries(truth.unsqueeze(2), generator)
        return (truth.gather(1, chosen) >= 0).sum()

    def pairs(
        self,
        kind: str,
        view1: Projected,
        view2: Projected,
        generator: torch.Generator | PartDraws,
        truth: Tensor | None = None,
    ) -> Pairs:
        """Queries, positives and keys of one loss; the arguments are those of `forward`."""
        if kind == "global":
            with torch.no_grad():
                keys = view2.heads[kind](view2.tokens.image).float()  # (B, D)
            queries = _unit(view1.heads[kind](view1.tokens.image))
            return Pairs(queries, _unit(keys), keys.unsqueeze(1))
        with torch.no_grad():
            raw = view2.heads[kind](view2.tokens.patches).float()  # (B, N, D)
            keys = _unit(raw)
        patches = view1.tokens.patches
        batch, count, _ = patches.shape
        chosen = self._queries(patches, generator)
        if chosen.shape[1] < count:
            patches = _take(patches, chosen)  # (B, Q, E)
        queries = _unit(view1.heads[kind](patches))  # (B, Q, D)
        features = self.config.correspondence_features
        if features == "backbone":
            partner = match(patches, view2.tokens.patches)  # (B, Q)
        elif features == "dense":
            partner = match(queries, keys)
        elif features == "random":
            partner = random_match(batch, count, generator, keys.device)[:, : chosen.shape[1]]
        elif truth is None:
            raise ValueError("truth must be given for correspondence_features 'geometry'")
        else:
            partner = truth.gather(1, chosen)
        positives = _take(keys, partner.clamp_min(0))  # (B, Q, D)
        return Pairs(queries.flatten(0, 1), positives.flatten(0, 1), raw, chosen, partner)

    def _queries(self, patches: Tensor, generator: torch.Generator | PartDraws) -> Tensor:
        """Which patches (B, Q) of (B, N, ...) are queries; drawn before anything else is."""
        batch, count, _ = patches.shape
        if self.config.query_patches == "all":
            return torch.arange(count, device=patches.device).expand(batch, -1)  # (B, N)
        return sample(patches, self.config.query_patches, "random", generator=generator)

    def _loss(self, kind: str, pairs: Pairs, image_ids: Tensor, matched: Tensor | None) -> Tensor:
        """The mean over the queries that have a positive; 0 if none has."""
        losses = queue_info_nce(
            pairs.queries,
            pairs.positives,
            self.queues[kind].features,
            self.temperature(),
            exclude=self._own_entries(kind, image_ids),
        )
        if pairs.partner is None or self.config.correspondence_features != "geometry":
            return losses.mean()
        exists = pairs.partner.flatten() >= 0
        return (losses * exists).sum() / (exists.sum().clamp_min(1) if matched is None else matched)

    def _own_entries(self, kind: str, image_ids: Tensor) -> Tensor | None:
        """(B, K), True where a queue entry comes from the query's own picture."""
        if not self.config.exclude_same_image:
            return None
        return image_ids[:, None] == self.queues[kind].image_ids[None, :]

    @torch.no_grad()
    def _chosen_keys(
        self,
        kind: str,
        pairs: Pairs,
        image_ids: Tensor,
        generator: torch.Generator | PartDraws,
    ) -> tuple[Tensor, Tensor]:
        """The features (M, D) that enter the queue, and their image ids (M,)."""
        if kind == "global" or self.config.dense_negatives == "pooled":
            # Pooled after the head and before normalising, then normalised (DenseCL's queue).
            return _unit(pairs.keys.mean(dim=1)), image_ids
        keys = _unit(pairs.keys)
        chosen = sample(
            keys,
            self.config.sampled_patches,
            self.config.sampling_strategy,
            queue=self.queues[kind].features,
            generator=generator,
        )  # (B, n)
        ids = image_ids[:, None].expand_as(chosen)
        return _take(keys, chosen).flatten(0, 1), ids.flatten()


def _unit(features: Tensor) -> Tensor:
    """L2-normalised in float32: half precision overflows in the norm."""
    return F.normalize(features.float(), dim=-1)


def _take(features: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, n, D) of features (B, N, D) at indices (B, n)."""
    return features.gather(1, indices.unsqueeze(2).expand(-1, -1, features.shape[2]))
