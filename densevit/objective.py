"""From a batch to the losses of a step: the networks of a run and what they are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from densevit.config import RunConfig, loss_weights
from densevit.contrast.losses import ContrastiveLoss, Projected
from densevit.contrast.matching import true_match
from densevit.data.loading import Batch
from densevit.model import DenseViT, Tokens
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

from timm.optim import param_groups_weight_decay  # noqa: E402


@dataclass
class Learner:
    """What a run trains: the network, its contrastive loss, and the moving average for the keys."""

    config: RunConfig
    model: DenseViT
    contrast: ContrastiveLoss | None
    averaged: AveragedModel | None


class Losses(NamedTuple):
    """The losses of a batch, scalars.

    total: (1−λ)·classification + λ·contrastive.
    classification: of both views; at λ = 1 that of the linear probe, on view 1.
    contrastive: None without a contrastive loss; `parts` are its `global` and `dense` without
        gradient.
    top1: the share of view 1 that is classified rightly.
    """

    total: Tensor
    classification: Tensor
    contrastive: Tensor | None
    parts: dict[str, Tensor]
    top1: Tensor


def build_learner(config: RunConfig, classes: int, device: torch.device) -> Learner:
    """The networks of a run with weights drawn from torch's global random state."""
    model = DenseViT(config, classes).to(device)
    contrast = ContrastiveLoss(config).to(device) if loss_weights(config) else None
    averaged = None
    if contrast is not None and config.key_encoder == "momentum":
        averaging = get_ema_multi_avg_fn(config.momentum)
        averaged = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
        averaged.update_parameters(model)  # the average begins with the initial weights
    return Learner(config, model, contrast, averaged)


def build_optimizer(learner: Learner) -> torch.optim.Optimizer:
    """AdamW over the network and a learned temperature; biases and norms do not decay."""
    config = learner.config
    groups = param_groups_weight_decay(learner.model, config.weight_decay)
    if learner.contrast is not None and config.learnable_temp:
        groups.append({"params": list(learner.contrast.parameters()), "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def compute_losses(
    learner: Learner,
    batch: Batch,
    weight: float,
    generator: torch.Generator,
    *,
    enqueue: bool = True,
) -> Losses:
    """The losses of a batch, with λ = `weight`; its keys then enter the queues.

    `generator` draws what is random; `enqueue=False` leaves the queues as they are.
    """
    model, contrast = learner.model, learner.contrast
    if model.probe:
        first, labels = model(batch.view1), batch.labels
        second, logits = None, first.logits
    else:
        tokens = model(torch.cat([batch.view1, batch.view2]))  # one pass over (2B, 3, S, S)
        first, second = (Tokens(*t) for t in zip(*(t.chunk(2) for t in tokens), strict=True))
        labels, logits = batch.labels.repeat(2), tokens.logits
    classification = F.cross_entropy(logits, labels)
    top1 = (first.logits.argmax(dim=1) == batch.labels).float().mean()
    if contrast is None:
        return Losses(classification, classification, None, {}, top1)
    contrastive, parts = contrast(
        Projected(first, model.heads),
        encode_keys(learner, batch.view2, second),
        batch.ids,
        generator,
        true_places(learner, batch),
        enqueue=enqueue,
    )
    # Self-supervised, the classification is another network's loss and no part of the total.
    total = contrastive if model.probe else (1 - weight) * classification + weight * contrastive
    return Losses(total, classification, contrastive, parts, top1)


@torch.no_grad()
def encode_keys(learner: Learner, view2: Tensor, tokens: Tokens | None) -> Projected:
    """View 2 (B, 3, S, S) as keys: by the moving average (MoCo, section 3.2), else by the network.

    `tokens` are those of the network, where they are there already.
    """
    network = learner.model if learner.averaged is None else learner.averaged.module
    if tokens is None or learner.averaged is not None:
        tokens = network(view2)
    return Projected(tokens, network.heads)


def true_places(learner: Learner, batch: Batch) -> Tensor | None:
    """The true matches (B, N) of a batch where the loss needs them."""
    if learner.config.correspondence_features != "geometry":
        return None
    return true_match(batch.place1, batch.place2, learner.model.grid)


def contrastive_weight(config: RunConfig, progress: float) -> float:
    """λ at a share of the run's steps in [0, 1]: constant, or rising linearly from 0."""
    return config.lambda_weight * (progress if config.contrastive_weight_adaptive else 1.0)


def optimise(learner: Learner, optimizer: torch.optim.Optimizer, losses: Losses) -> None:
    """One step of the optimiser, and of what follows the weights."""
    model, contrast = learner.model, learner.contrast
    optimizer.zero_grad(set_to_none=True)
    (losses.total + losses.classification if model.probe else losses.total).backward()
    if learner.config.grad_clip > 0:
        nn.utils.clip_grad_norm_(_clipped(model), learner.config.grad_clip)
    optimizer.step()
    if contrast is not None:
        contrast.clamp_temperature()
    if learner.averaged is not None:
        learner.averaged.update_parameters(model)


def _clipped(model: DenseViT) -> list[nn.Parameter]:
    """The parameters that share a gradient norm: a probe's gradient must not shorten the others."""
    probe = set(model.backbone.get_classifier().parameters()) if model.probe else set()
    return [parameter for parameter in model.parameters() if parameter not in probe]
