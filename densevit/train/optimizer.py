"""AdamW with weight decay on matrices only, as timm's optimizer factory chooses them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from densevit.config.run_config import RunConfig
from densevit.models.vit import DenseViT
from densevit.train.learner import Learner
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from timm.optim import (  # type: ignore[attr-defined]  # noqa: E402  # timm's stubs
    param_groups_layer_decay,
    param_groups_weight_decay,
)


def build_optimizer(learner: Learner) -> torch.optim.Optimizer:
    """Return AdamW for the network and a learned temperature."""
    return torch.optim.AdamW(parameter_groups(learner), lr=learner.config.learning_rate, fused=True)


def parameter_groups(learner: Learner) -> list[dict[str, Any]]:
    """Return the groups of parameters with their weight decay and share of the learning rate.

    Biases, norms and what the backbone exempts (position embedding and CLS token) do not decay.
    """
    config = learner.config
    groups = _decayed_groups(learner.model, config)
    if learner.contrast is not None and config.learnable_temp:
        groups.append({"params": list(learner.contrast.parameters()), "weight_decay": 0.0})
    return groups


def _decayed_groups(model: DenseViT, config: RunConfig) -> list[dict[str, Any]]:
    exempt: set[str] = getattr(model.backbone, "no_weight_decay", set)()
    groups: list[dict[str, Any]]
    if config.layer_decay == 1.0:
        groups = param_groups_weight_decay(
            model.backbone, config.weight_decay, no_weight_decay_list=exempt
        )
    else:
        groups = param_groups_layer_decay(
            model.backbone,
            config.weight_decay,
            no_weight_decay_list=exempt,
            layer_decay=config.layer_decay,
        )
    # timm counts the backbone's layers; the heads come after them and learn at full rate.
    return [*groups, *param_groups_weight_decay(model.heads, config.weight_decay)]


def clipped_parameters(model: DenseViT) -> list[nn.Parameter]:
    """Return the parameters to clip; a linear probe's gradient must not scale down the others."""
    if not model.linear_probe:
        return list(model.parameters())
    found = model.backbone.get_classifier()  # of a distilled DeiT: two
    heads = found if isinstance(found, tuple) else (found,)
    probe = {parameter for head in heads for parameter in head.parameters()}
    return [parameter for parameter in model.parameters() if parameter not in probe]
