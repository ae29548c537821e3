"""Mixup of images and labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from densevit.config.loss_modes import loss_weights
from densevit.config.run_config import RunConfig
from densevit.data.batch import Batch
from densevit.data.random_streams import MIXUP, derived_seed


def mixup_share(config: RunConfig, step: int) -> float:
    """Return the weight of an image's own pixels in a step; 1 without mixup.

    With a contrastive loss it is at least 1/2, as in MixMatch (Berthelot et al., NeurIPS 2019,
    equation 9): keys and queries of an image then show mostly this image.
    """
    if config.mixup == 0:
        return 1.0
    generator = np.random.default_rng(derived_seed(MIXUP, config.seed, step))
    share = float(generator.beta(config.mixup, config.mixup))
    return max(share, 1 - share) if loss_weights(config) else share


def mix(batch: Batch, share: float) -> Batch:
    """Mix each image with its neighbor in the batch, both views in the same way.

    Zhang et al., "mixup" (ICLR 2018), with one share per batch as in timm. Neighbors are mixed so
    that parts of even size mix the same pairs as the whole batch; the last of an odd number is
    unchanged.
    """
    if share == 1.0:
        return batch
    other = neighbors(len(batch.ids), batch.ids.device)
    view1, view2 = (v.lerp(v[other], 1 - share) for v in (batch.view1, batch.view2))
    return batch._replace(view1=view1, view2=view2)


def neighbors(count: int, device: torch.device) -> Tensor:
    """Return the indices 1, 0, 3, 2, ... (count,)."""
    places = torch.arange(count, device=device)
    return (places ^ 1).clamp_max(count - 1)
