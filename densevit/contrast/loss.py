"""The contrastive loss of a run, with its queues and temperature."""

from __future__ import annotations

import importlib
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densevit.config.loss_kinds import loss_kind
from densevit.config.loss_modes import loss_weights
from densevit.config.run_config import TEMPERATURE_RANGE, RunConfig
from densevit.contrast.info_nce import queue_info_nce
from densevit.contrast.pairs import EncodedView, PairFunctions, Pairs, View
from densevit.contrast.queue import FeatureQueue
from densevit.contrast.random_draws import Draws, copy_of


class ContrastiveLosses(NamedTuple):
    """The total loss of a step, a scalar with gradient, and its parts without gradient.

    parts: the loss of each kind.
    keys: for each kind, the features (M, D) and image ids (M,) that will enter its queue.
    """

    total: Tensor
    parts: dict[str, Tensor]
    keys: dict[str, tuple[Tensor, Tensor]]


class ContrastiveLoss(nn.Module):
    """The weighted sum of a run's kinds of loss, InfoNCE against queues.

    Queries come from view 1 with gradient, keys from view 2 without. The negatives are the queue
    before the batch: a step never sees its own keys. Each kind has a head and a queue of its own
    (Wang et al., "Dense Contrastive Learning", section 3.3). A loss of weight 0 is not computed.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = loss_weights(config)
        self.functions = {kind: _functions(kind) for kind in self.weights}
        self.queues = nn.ModuleDict(
            {kind: FeatureQueue(config.queue_size, config.dense_dim) for kind in self.weights}
        )
        start = torch.tensor(math.log(config.temperature))
        self.log_temperature = nn.Parameter(start) if config.learnable_temp else None

    def queue(self, kind: str) -> FeatureQueue:
        """Return the queue of a kind of loss."""
        queue = self.queues[kind]
        if not isinstance(queue, FeatureQueue):
            raise TypeError(f"{kind}: {type(queue).__name__} is no FeatureQueue")
        return queue

    def temperature(self) -> Tensor | float:
        """Return the softmax temperature; a tensor with gradient if it is learned."""
        if self.log_temperature is None:
            return self.config.temperature
        return self.log_temperature.exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Clamp a learned temperature to TEMPERATURE_RANGE; call after the optimizer's step."""
        if self.log_temperature is not None:
            low, high = TEMPERATURE_RANGE
            self.log_temperature.clamp_(math.log(low), math.log(high))

    def forward(
        self,
        view1: EncodedView,
        view2: EncodedView,
        image_ids: Tensor,
        draws: Draws,
        true_matches: Tensor | None = None,
        matched: dict[str, Tensor] | None = None,
    ) -> ContrastiveLosses:
        """Return the mean loss over all queries, without changing the queues.

        Args:
            view1: gives the queries.
            view2: gives the keys, with the heads of the network that encoded it.
            image_ids: (B,), ids of the images.
            draws: draws all random numbers, for each kind the same.
            true_matches: (B, N) from `true_match`, if `uses_true_matches`.
            matched: divisors of the sums over matched queries, by kind; None divides by their
                number. For a part of a batch it is the mean number per part (`count_matched`).
        """
        total = image_ids.new_zeros((), dtype=torch.float32)
        parts, keys = {}, {}
        for kind, weight in self.weights.items():
            own_draws = copy_of(draws)
            pairs = self.pairs(kind, view1, view2, own_draws, true_matches)
            loss = self._loss(kind, pairs, image_ids, (matched or {}).get(kind))
            total = total + weight * loss
            parts[kind] = loss.detach()
            keys[kind] = self._queue_keys(kind, pairs, image_ids, own_draws)
        return ContrastiveLosses(total, parts, keys)

    def enqueue(self, parts: list[dict[str, tuple[Tensor, Tensor]]]) -> None:
        """Add the keys of a step to the queues, from each part of its batch in order."""
        for kind in self.weights:
            features, ids = zip(*(part[kind] for part in parts), strict=True)
            self.queue(kind).enqueue(torch.cat(features), torch.cat(ids))

    @property
    def uses_true_matches(self) -> bool:
        """Return True if one of the losses needs the true matches."""
        return any(each.uses_true_matches(self.config) for each in self.functions.values())

    def count_matched(self, true_matches: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Return how many queries `forward` will match, for the kinds that use true matches."""
        return {
            kind: each.count_matched(self.config, true_matches, copy_of(draws))
            for kind, each in self.functions.items()
            if each.count_matched is not None and each.uses_true_matches(self.config)
        }

    def pairs(
        self,
        kind: str,
        view1: EncodedView,
        view2: EncodedView,
        draws: Draws,
        true_matches: Tensor | None = None,
    ) -> Pairs:
        """Return queries, positives and keys of one loss; arguments as in `forward`."""
        one, two = (View(view.tokens, view.heads[kind]) for view in (view1, view2))
        return self.functions[kind].make_pairs(self.config, one, two, draws, true_matches)

    def _loss(self, kind: str, pairs: Pairs, image_ids: Tensor, matched: Tensor | None) -> Tensor:
        """Return the mean loss over the queries that have a positive; 0 if none has."""
        queue, exclude = self.queue(kind), None
        if self.config.exclude_same_image:
            exclude = image_ids[:, None] == queue.image_ids[None, :]  # (B, K)
        losses = queue_info_nce(
            pairs.queries, pairs.positives, queue.features, self.temperature(), exclude=exclude
        )
        exists = pairs.matched()
        if exists is None:
            return losses.mean()
        return (losses * exists).sum() / (exists.sum().clamp_min(1) if matched is None else matched)

    @torch.no_grad()
    def _queue_keys(
        self, kind: str, pairs: Pairs, image_ids: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Return the features (M, D) that enter the queue, and their image ids (M,)."""
        queue = self.queue(kind).features
        keys = self.functions[kind].queue_keys(self.config, pairs, queue, draws)  # (B, n, D)
        return keys.flatten(0, 1), image_ids[:, None].expand(keys.shape[:2]).flatten()


def _functions(kind: str) -> PairFunctions:
    """Import the functions of a kind of loss."""
    functions = importlib.import_module(loss_kind(kind).module).FUNCTIONS
    if not isinstance(functions, PairFunctions):
        raise TypeError(f"{loss_kind(kind).module}.FUNCTIONS must be PairFunctions")
    return functions
