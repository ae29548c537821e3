"""From a batch to the losses of a step: the networks of a run and what they are trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from densevit.config import RunConfig, loss_weights
from densevit.contrast.draws import PartDraws
from densevit.contrast.losses import ContrastiveLoss, Projected
from densevit.contrast.matching import true_match
from densevit.data.loading import Batch
from densevit.model import DenseViT, Tokens
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # noqa: E402

# Called with the name of the phase that begins, to learn what each takes.
Mark = Callable[[str], None]


class Losses(NamedTuple):
    """The losses of a batch, scalars.

    total: (1−λ)·classification + λ·contrastive.
    classification: of both views; at λ = 1 that of the linear probe, on view 1.
    contrastive: None without a contrastive loss; `parts` are its `global` and `dense` without
        gradient, `keys` what is to enter their queues (see `ContrastiveLosses`).
    top1: the share of view 1 that is classified rightly.
    """

    total: Tensor
    classification: Tensor
    contrastive: Tensor | None
    parts: dict[str, Tensor]
    keys: dict[str, tuple[Tensor, Tensor]]
    top1: Tensor


class Learner(nn.Module):
    """What a run trains: the network, its contrastive loss, and the moving average for the keys.

    One module, so that DistributedDataParallel sees every weight that has a gradient.
    """

    def __init__(
        self,
        config: RunConfig,
        model: DenseViT,
        contrast: ContrastiveLoss | None,
        averaged: DenseViT | None,
    ) -> None:
        super().__init__()
        self.config, self.model = config, model
        self.contrast, self.averaged = contrast, averaged

    def forward(
        self,
        batch: Batch,
        weight: float,
        generator: torch.Generator | PartDraws,
        *,
        matched: Tensor | None = None,
        mixed: float = 1.0,
        mark: Mark = lambda _: None,
    ) -> Losses:
        """The losses of a batch, with λ = `weight`, against the queues as they are.

        `generator` draws what is random; for `matched` see `ContrastiveLoss`; `mixed` is the share
        of its own in each picture (see `mix`).
        """
        model, contrast, config = self.model, self.contrast, self.config
        if model.probe:
            first, labels = model(batch.view1), batch.labels
            second, logits = None, first.logits
        else:
            tokens = model(torch.cat([batch.view1, batch.view2]))  # one pass over (2B, 3, S, S)
            first, second = (Tokens(*t) for t in zip(*(t.chunk(2) for t in tokens), strict=True))
            labels, logits = batch.labels.repeat(2), tokens.logits
        classification = _classification(logits.float(), labels, len(batch.ids), mixed, config)
        top1 = (first.logits.argmax(dim=1) == batch.labels).float().mean()
        if contrast is None:
            return Losses(classification, classification, None, {}, {}, top1)
        mark("contrastive")
        contrastive, parts, keys = contrast(
            Projected(first, model.heads),
            encode_keys(self, batch.view2, second),
            batch.ids,
            generator,
            true_places(self, batch),
            matched,
        )
        # Self-supervised, the classification is another network's loss and no part of the total.
        total = contrastive
        if not model.probe:
            total = (1 - weight) * classification + weight * contrastive
        return Losses(total, classification, contrastive, parts, keys, top1)


def build_learner(
    config: RunConfig, classes: int, device: torch.device, *, pretrained: bool = True
) -> Learner:
    """The networks of a run with weights drawn from torch's global random state.

    `pretrained` False leaves timm's weights out even where the run begins with them: a checkpoint
    is about to take their place.
    """
    model = DenseViT(config, classes, pretrained=pretrained).to(device)
    contrast = ContrastiveLoss(config).to(device) if loss_weights(config) else None
    averaged = None
    if contrast is not None and config.key_encoder == "momentum":
        averaged = copy.deepcopy(model).requires_grad_(False)
    return Learner(config, model, contrast, averaged)


def build_optimizer(learner: Learner) -> torch.optim.Optimizer:
    """AdamW over the network and a learned temperature; biases and norms do not decay."""
    config = learner.config
    groups = _decayed_groups(learner.model, config)
    if learner.contrast is not None and config.learnable_temp:
        groups.append({"params": list(learner.contrast.parameters()), "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _decayed_groups(model: DenseViT, config: RunConfig) -> list[dict[str, Any]]:
    if config.layer_decay == 1.0:
        return param_groups_weight_decay(model, config.weight_decay)
    # timm counts the layers of the backbone; the heads lie above them all and learn at full rate.
    groups = param_groups_layer_decay(
        model.backbone, config.weight_decay, layer_decay=config.layer_decay
    )
    return groups + param_groups_weight_decay(model.heads, config.weight_decay)


@torch.no_grad()
def encode_keys(learner: Learner, view2: Tensor, tokens: Tokens | None) -> Projected:
    """View 2 (B, 3, S, S) as keys: by the moving average (MoCo, section 3.2), else by the network.

    `tokens` are those of the network, where they are there already.
    """
    network = learner.model if learner.averaged is None else learner.averaged
    if tokens is None or learner.averaged is not None:
        tokens = network(view2)
    return Projected(tokens, network.heads)


@torch.no_grad()
def follow(learner: Learner) -> None:
    """Let the moving average follow the weights and buffers; call after the optimiser's step.

    torch's AveragedModel asks the device at each step whether it is the first; this does not.
    """
    if learner.averaged is None:
        return
    own, theirs = (
        [*m.parameters(), *(b for b in m.buffers() if b.is_floating_point())]
        for m in (learner.averaged, learner.model)
    )
    get_ema_multi_avg_fn(learner.config.momentum)(own, theirs, None)
    for held, new in zip(learner.averaged.buffers(), learner.model.buffers(), strict=True):
        if not held.is_floating_point():
            held.copy_(new)


def true_places(learner: Learner, batch: Batch) -> Tensor | None:
    """The true matches (B, N) of a batch where the loss needs them."""
    if learner.config.correspondence_features != "geometry":
        return None
    return true_match(batch.place1, batch.place2, learner.model.grid)


def contrastive_weight(config: RunConfig, progress: float) -> float:
    """λ at a share of the run's steps in [0, 1]: constant, or rising linearly from 0."""
    return config.lambda_weight * (progress if config.contrastive_weight_adaptive else 1.0)


def mix(batch: Batch, share: float) -> Batch:
    """Each picture mixed with its neighbour in the batch, both views in the same way.

    Zhang et al., "mixup" (ICLR 2018), with one share a batch as timm has it. Neighbours, so that
    parts of even size mix what the whole batch mixes; the last of an odd number stays as it is.
    """
    if share == 1.0:
        return batch
    other = _neighbours(len(batch.ids), batch.ids.device)
    views = (v.lerp(v[other], 1 - share) for v in (batch.view1, batch.view2))
    return Batch(*views, *batch[2:])


def _neighbours(count: int, device: torch.device) -> Tensor:
    """1, 0, 3, 2, ... (count,)."""
    places = torch.arange(count, device=device)
    return (places ^ 1).clamp_max(count - 1)


def _classification(
    logits: Tensor, labels: Tensor, pictures: int, mixed: float, config: RunConfig
) -> Tensor:
    """The cross-entropy of logits (R, C), which are those of one or two views of the pictures."""
    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if mixed == 1.0:
        return loss
    places = _neighbours(pictures, labels.device)
    others = labels.view(-1, pictures)[:, places].flatten()  # (views, B) -> (R,)
    other = F.cross_entropy(logits, others, label_smoothing=config.label_smoothing)
    return mixed * loss + (1 - mixed) * other


def clipped_parameters(model: DenseViT) -> list[nn.Parameter]:
    """The parameters that share a gradient norm: a probe's gradient must not shorten the others."""
    probe = set(model.backbone.get_classifier().parameters()) if model.probe else set()
    return [parameter for parameter in model.parameters() if parameter not in probe]
