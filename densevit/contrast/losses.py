"""The contrastive loss of a run: its queue, its temperature, and one call a step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densevit.config import RunConfig
from densevit.contrast.info_nce import queue_info_nce
from densevit.contrast.matching import match, random_match
from densevit.contrast.queue import FeatureQueue
from densevit.contrast.sampling import sample
from densevit.model import Tokens

TEMPERATURE_RANGE = (0.01, 1.0)  # of a learned temperature


class Projected(NamedTuple):
    """One view of a batch: its tokens, and the head that projects them."""

    tokens: Tokens
    head: nn.Module


class ContrastiveLoss(nn.Module):
    """Dense or global InfoNCE against a queue.

    Queries come from view 1 with gradient, keys from view 2 without. The negatives are the queue
    as it stood before the batch: a step never sees its own keys.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.queue = FeatureQueue(config.queue_size, config.dense_dim)
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
        self, view1: Projected, view2: Projected, image_ids: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The mean loss over all queries, a scalar; the batch's keys then enter the queue.

        `view1` gives the queries and `view2` the keys, each with the head of the network that
        encoded it. `image_ids` (B,) name the pictures; `generator` draws what is random.
        """
        if self.config.cl_mode == "global":
            queries, positives = _global_pairs(view1, view2)
            entries, entry_ids = positives, image_ids
        else:
            queries, positives, keys = self._dense_pairs(view1, view2, generator)
            entries, entry_ids = self._entries(keys, image_ids, generator)
        losses = queue_info_nce(
            queries,
            positives,
            self.queue.features,
            self.temperature(),
            exclude=self._own_entries(image_ids),
        )
        self.queue.enqueue(entries, entry_ids)
        return losses.mean()

    def _own_entries(self, image_ids: Tensor) -> Tensor | None:
        """(B, K), True where a queue entry comes from the query's own picture."""
        if not self.config.exclude_same_image:
            return None
        return image_ids[:, None] == self.queue.image_ids[None, :]

    def _dense_pairs(
        self, view1: Projected, view2: Projected, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B·Q, D), their positives (B·Q, D), and all keys (B, N, D)."""
        with torch.no_grad():
            keys = _unit(view2.head(view2.tokens.patches))  # (B, N, D)
        patches = view1.tokens.patches
        batch, count, _ = patches.shape
        if self.config.query_patches != "all":
            chosen = sample(patches, self.config.query_patches, "random", generator=generator)
            patches = _take(patches, chosen)  # (B, Q, E)
        queries = _unit(view1.head(patches))  # (B, Q, D)
        if self.config.correspondence_features == "backbone":
            partner = match(patches, view2.tokens.patches)  # (B, Q)
        elif self.config.correspondence_features == "dense":
            partner = match(queries, keys)
        else:
            partner = random_match(batch, count, generator, keys.device)[:, : patches.shape[1]]
        positives = _take(keys, partner)  # (B, Q, D)
        return queries.flatten(0, 1), positives.flatten(0, 1), keys

    def _entries(
        self, keys: Tensor, image_ids: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The keys that enter the queue (B·n, D) and the picture of each (B·n,)."""
        chosen = sample(
            keys,
            self.config.sampled_patches,
            self.config.sampling_strategy,
            queue=self.queue.features,
            generator=generator,
        )  # (B, n)
        ids = image_ids[:, None].expand_as(chosen)
        return _take(keys, chosen).flatten(0, 1), ids.flatten()


def _global_pairs(view1: Projected, view2: Projected) -> tuple[Tensor, Tensor]:
    """One query and one key a picture, (B, D) each."""
    with torch.no_grad():
        keys = _unit(view2.head(view2.tokens.image))
    return _unit(view1.head(view1.tokens.image)), keys


def _unit(features: Tensor) -> Tensor:
    """L2-normalised in float32: half precision overflows in the norm."""
    return F.normalize(features.float(), dim=-1)


def _take(features: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, n, D) of features (B, N, D) at indices (B, n)."""
    return features.gather(1, indices[..., None].expand(-1, -1, features.shape[-1]))
