"""Rehearse a run before it starts: its losses, their gradients and an evaluation batch.

Everything has the run's own shapes and no content (torch's meta device), so that a setting that
cannot work is found in a fraction of a second and without memory, whatever the size of the network.
"""

from __future__ import annotations

import re

import torch

from densevit.config.evaluation_names import DRAWN_TESTS
from densevit.config.run_config import RunConfig
from densevit.contrast.random_draws import PartDraws
from densevit.data.batch import Batch
from densevit.data.shapes import dataset
from densevit.models.backbone import check_model, check_patches
from densevit.models.initial_weights import read_initial
from densevit.models.vit import DenseViT
from densevit.train.learner import Learner, build_learner
from densevit.train.mixup import mix, mixup_share
from densevit.train.optimizer import clipped_parameters, parameter_groups
from densevit.utils.errors import UserError, reason_of

_IMAGES, _CLASSES = 4, 7
_META = torch.device("meta")


def rehearse(config: RunConfig) -> int:
    """Check a run's model and settings; return the side of its input in pixels.

    Errors: `UserError` if the model cannot be built or has too few patches, and if the settings do
    not work together.
    """
    try:
        with _META:
            learner = build_learner(config, _CLASSES, _META, pretrained=False)
        size = check_patches(config, learner.model.backbone)
        parameter_groups(learner)
        _evaluation(learner, size)
        _step(learner, size)
    except UserError:
        raise
    except Exception as error:  # layers of timm may raise anything; the user chose their arguments
        if re.search(r"\bmeta\b", str(error)):
            return check_model(config)  # a computation looks at values: only the run can tell
        key = "model_kwargs" if config.model_kwargs else "model_name"
        raise UserError(
            f"{key}: {config.model_name} cannot be trained with these settings: {reason_of(error)}"
        ) from None
    return size


def rehearse_loading(config: RunConfig) -> None:
    """Check that the file of `init_checkpoint` fits the network. Errors: as in `read_initial`."""
    with _META:
        model = DenseViT(config, _CLASSES, pretrained=False)
    read_initial(model, str(config.init_checkpoint), config.init_share)


def _step(learner: Learner, size: int) -> None:
    """Take a training step up to the update of the weights, which asks no more of the settings."""
    config = learner.config
    learner.train()
    draws = PartDraws(torch.Generator().manual_seed(0), 0, _IMAGES)
    share = mixup_share(config, 0)
    batch = mix(_batch(config, size), share)
    losses = learner(batch, config.lambda_weight, draws, mixed=share)
    objective = losses.total
    if learner.model.linear_probe:
        objective = objective + losses.classification
    torch.autograd.backward(objective)
    clipped_parameters(learner.model)
    if learner.contrast is not None:
        learner.contrast.enqueue([losses.keys])


def _evaluation(learner: Learner, size: int) -> None:
    """Predict a batch of images, and project patches as health and correspondence do."""
    learner.eval()
    with torch.no_grad():
        tokens = learner.model(torch.empty(_IMAGES, 3, size, size, device=_META))
        rows, columns = learner.model.grid
        if tokens.logits.shape != (_IMAGES, _CLASSES):
            raise ValueError(f"its outputs for images are {tuple(tokens.logits.shape)}")
        if tokens.patches.shape[1] != rows * columns:
            tokens_found = tokens.patches.shape[1]
            raise ValueError(f"it gives {tokens_found} tokens for {rows}x{columns} patches")
        for head in learner.model.heads.values():
            head(tokens.patches)


def _batch(config: RunConfig, size: int) -> Batch:
    drawn = config.dataset in DRAWN_TESTS and dataset.SETS[config.dataset].multilabel
    labels = torch.empty(_IMAGES, _CLASSES) if drawn else torch.empty(_IMAGES, dtype=torch.int64)
    view, place = torch.empty(_IMAGES, 3, size, size), torch.empty(_IMAGES, 4)
    ids = torch.empty(_IMAGES, dtype=torch.int64)
    return Batch(view, view, place, place, labels, ids).to(_META)
