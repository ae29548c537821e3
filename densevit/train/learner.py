"""The networks of a run and the losses of a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from densevit.config.loss_modes import loss_weights
from densevit.config.run_config import RunConfig
from densevit.contrast.loss import ContrastiveLoss
from densevit.contrast.matching import true_match
from densevit.contrast.pairs import EncodedView
from densevit.contrast.random_draws import Draws
from densevit.data.batch import Batch
from densevit.models.vit import DenseViT, Tokens
from densevit.train.mixup import neighbors
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()


# Called with the name of the phase that begins, for timing.
Mark = Callable[[str], None]


class Losses(NamedTuple):
    """The losses of a batch, scalars.

    total: (1−λ)·classification + λ·contrastive.
    classification: of both views; at λ = 1 that of the linear probe, on view 1.
    contrastive: None without a contrastive loss; for `parts`, the losses of its kinds, and `keys`
        see `ContrastiveLosses`.
    top1: accuracy on view 1, as a share.
    """

    total: Tensor
    classification: Tensor
    contrastive: Tensor | None
    parts: dict[str, Tensor]
    keys: dict[str, tuple[Tensor, Tensor]]
    top1: Tensor


class Learner(nn.Module):
    """The network, its contrastive loss, and the moving average that encodes the keys.

    One module, so that DistributedDataParallel sees every parameter that has a gradient.
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

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; the moving average stays in evaluation mode.

        Keys are encoded without drop path, as by DINO's teacher (Caron et al., ICCV 2021).
        """
        super().train(mode)
        if self.averaged is not None:
            self.averaged.eval()
        return self

    def forward(
        self,
        batch: Batch,
        weight: float,
        draws: Draws,
        *,
        matched: dict[str, Tensor] | None = None,
        mixed: float = 1.0,
        mark: Mark = lambda _: None,
    ) -> Losses:
        """Return the losses of a batch, with λ = `weight`, without changing the queues.

        `draws` draws all random numbers. For `matched` see `ContrastiveLoss`. `mixed` is the
        mixup weight of each image's own pixels (see `mix`).
        """
        model, contrast, config = self.model, self.contrast, self.config
        if model.linear_probe:
            first, labels = model(batch.view1), batch.labels
            second, logits = None, first.logits
        else:
            tokens = model(torch.cat([batch.view1, batch.view2]))  # one pass over (2B, 3, S, S)
            first, second = (Tokens(*t) for t in zip(*(t.chunk(2) for t in tokens), strict=True))
            labels, logits = torch.cat([batch.labels, batch.labels]), tokens.logits
        classification = _classification(logits.float(), labels, len(batch.ids), mixed, config)
        top1 = _hits(first.logits, batch.labels).mean()
        if contrast is None:
            return Losses(classification, classification, None, {}, {}, top1)
        mark("contrastive")
        contrastive, parts, keys = contrast(
            EncodedView(first, model.heads),
            encode_keys(self, batch.view2, second),
            batch.ids,
            draws,
            true_matches(self, batch),
            matched,
        )
        # In self-supervised training the classification loss belongs only to the linear probe.
        total = contrastive
        if not model.linear_probe:
            total = (1 - weight) * classification + weight * contrastive
        return Losses(total, classification, contrastive, parts, keys, top1)


def build_learner(
    config: RunConfig, classes: int, device: torch.device, *, pretrained: bool = True
) -> Learner:
    """Build the networks of a run, with weights drawn from torch's global generator.

    `pretrained` False skips timm's weights even if the config requests them, because a checkpoint
    will replace them.
    """
    model = DenseViT(config, classes, pretrained=pretrained).to(device)
    contrast = ContrastiveLoss(config).to(device) if loss_weights(config) else None
    averaged = None
    if contrast is not None and config.key_encoder == "momentum":
        averaged = copy.deepcopy(model).requires_grad_(False).eval()
    return Learner(config, model, contrast, averaged)


@torch.no_grad()
def encode_keys(learner: Learner, view2: Tensor, tokens: Tokens | None) -> EncodedView:
    """Encode view 2 (B, 3, S, S) as keys, by the moving average (MoCo, section 3.2) if any.

    `tokens` are the network's tokens of view 2, if already computed.
    """
    network = learner.model if learner.averaged is None else learner.averaged
    if tokens is None or learner.averaged is not None:
        tokens = network(view2)
    return EncodedView(tokens, network.heads)


@torch.no_grad()
def update_average(learner: Learner) -> None:
    """Update the moving average of weights and buffers; call after the optimizer's step.

    Also after a skipped one: the average then moves on toward the weights as they are.

    torch's AveragedModel waits for the device at each step to see if it is the first.
    """
    if learner.averaged is None:
        return
    averages, weights = (
        [*m.parameters(), *(b for b in m.buffers() if b.is_floating_point())]
        for m in (learner.averaged, learner.model)
    )
    update = get_ema_multi_avg_fn(learner.config.momentum)
    update(averages, weights, None)
    for average, new in zip(learner.averaged.buffers(), learner.model.buffers(), strict=True):
        if not average.is_floating_point():
            average.copy_(new)


def true_matches(learner: Learner, batch: Batch) -> Tensor | None:
    """Return the true matches (B, N) of a batch, or None if no loss needs them."""
    if learner.contrast is None or not learner.contrast.uses_true_matches:
        return None
    return true_match(batch.place1, batch.place2, learner.model.grid)


def contrastive_weight(config: RunConfig, progress: float) -> float:
    """Return λ at `progress` in [0, 1] of the run: constant, or rising linearly from 0."""
    return config.lambda_weight * (progress if config.contrastive_weight_adaptive else 1.0)


def _classification(
    logits: Tensor, labels: Tensor, images: int, mixed: float, config: RunConfig
) -> Tensor:
    """Return the cross-entropy of logits (R, C) of one or two views of the images."""
    loss = _cross_entropy(logits, labels, config.label_smoothing)
    if mixed == 1.0:
        return loss
    places = neighbors(images, labels.device)
    others = labels.unflatten(0, (-1, images))[:, places].flatten(0, 1)  # (views, B, ...) -> (R,)
    other = _cross_entropy(logits, others, config.label_smoothing)
    return mixed * loss + (1 - mixed) * other


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean over images of the cross-entropy of labels (R,).

    Of labels (R, C) it is the sum over classes of the binary cross-entropies, so that a wrong class
    weighs as much as among labels (R,); smoothing then moves each label toward one half.
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    targets = labels * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.sum(dim=1).mean()


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (R,) 1 where the most probable class is the image's, or one of the image's."""
    best = logits.argmax(dim=1)
    if labels.ndim == 1:
        return (best == labels).float()
    return labels.gather(1, best[:, None]).squeeze(1).float()
