"""What the log says about a configuration before the first step."""

from __future__ import annotations

import logging
from statistics import median

from densevit.config.loss_kinds import loss_kind
from densevit.config.loss_modes import loss_weights
from densevit.config.run_config import RunConfig
from densevit.models.vit import DenseViT, has_class_token
from densevit.sweep.cells import value_text
from densevit.utils.console import count
from densevit.utils.threads import threads

log = logging.getLogger("densevit")

# timm's default initial weights have a standard deviation of 0.02. That suits networks of this
# width and more (ViT-Ti); in narrower ones signal and gradient fade from block to block.
DEFAULT_INIT_WIDTH = 192


def log_startup(config: RunConfig, model: DenseViT, steps: int) -> None:
    """Log consequences of a configuration that a reader may not expect, and warn of faults."""
    for message in consequences(config, model, steps):
        log.info("%s", message)
    for message in warnings(config, model, steps):
        log.warning("%s", message)


def consequences(config: RunConfig, model: DenseViT, steps: int) -> list[str]:
    """Return what follows from a configuration for a run of so many steps."""
    rate = value_text(config.learning_rate)
    found = [f"learning_rate {rate}, {steps} steps of {config.batch_size} images"]
    if config.cl_mode != "none" and not loss_weights(config):
        found.append("lambda_weight 0: supervised training, no contrastive loss is computed")
    if config.unlabelled:
        found.append("unlabelled: self-supervised training, without val and accuracies")
    elif model.linear_probe:
        found.append(
            "lambda_weight 1: self-supervised training; accuracies are those of a linear probe on "
            "the features, which it does not change"
        )
    of_image = any(loss_kind(kind).tokens == "image" for kind in loss_weights(config))
    if of_image and not has_class_token(model.backbone):
        found.append(
            f"{config.model_name} has no class token: the mean of its patches represents the image"
        )
    return found


def warnings(config: RunConfig, model: DenseViT, steps: int) -> list[str]:
    """Return why a run of so many steps will learn little or by chance; `model` is untrained."""
    found = []
    given = threads(config.threads)
    if given < config.threads:
        found.append(f"threads: the run was given {count(given, 'processor')}, and computes with "
                     f"that many threads instead of {config.threads}")  # fmt: skip
    from_scratch = not (config.pretrained or config.init_checkpoint)
    if from_scratch and _narrow(model):
        found.append(
            f"model_kwargs: the network is {model.backbone.num_features} wide; timm's default "
            f"initial weights suit {DEFAULT_INIT_WIDTH} and more, and with them the accuracy of a "
            f"narrower one depends much on the seed; add weight_init: moco"
        )
    # The rate rises linearly from 0 and falls as a cosine to 0: its mean is half of the peak. Adam
    # moves a weight by about the rate in each step, and by less if the gradient's sign changes.
    moved, spread = config.learning_rate * steps / 2, _initial_spread(model)
    if from_scratch and moved < spread:
        found.append(
            f"learning_rate: the rates of all {steps} steps sum to {moved:.2g}; AdamW moves a "
            f"weight by about that at most, and the initial weights have a standard deviation of "
            f"{spread:.2g}; a higher learning_rate or more epochs are needed"
        )
    averaged = 1 / (1 - config.momentum)
    if loss_weights(config) and config.key_encoder == "momentum" and averaged > steps / 5:
        found.append(
            f"momentum: {value_text(config.momentum)} averages over about {averaged:.0f} steps, "
            f"and the run has {steps}: its keys are nearly those of the initial weights; "
            f"{_fitting_momentum(steps):g} fits"
        )
    return found


def _narrow(model: DenseViT) -> bool:
    backbone = model.backbone
    default = getattr(backbone, "weight_init_mode", None) == ""
    return default and backbone.num_features < DEFAULT_INIT_WIDTH


def _initial_spread(model: DenseViT) -> float:
    """Return the median standard deviation of the weight matrices in the backbone's blocks."""
    return median(
        float(weight.detach().std())
        for name, weight in model.backbone.named_parameters()
        if weight.ndim == 2 and "blocks" in name
    )


def _fitting_momentum(steps: int) -> float:
    """Return the momentum that averages over about a tenth of a run."""
    return max(0.0, 1 - float(f"{10 / steps:.1g}"))
