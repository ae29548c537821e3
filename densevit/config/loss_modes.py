"""Weights of the losses of a run, and the config fields that have an effect on it."""

from __future__ import annotations

from functools import cache

from densevit.config import loss_kinds
from densevit.config.loss_kinds import LossKind
from densevit.config.run_config import RunConfig


def loss_weights(config: RunConfig) -> dict[str, float]:
    """Return the weights of the contrastive losses that a run computes, by kind.

    The weights sum to 1. Empty without a contrastive loss: `cl_mode: none`, or `lambda_weight: 0`.
    """
    if config.cl_mode == "none" or config.lambda_weight == 0:
        return {}
    if config.cl_mode != "joint":
        return {config.cl_mode: 1.0}
    kinds = [(kind.name, kind.joint) for kind in loss_kinds.LOSS_KINDS]
    weights = {name: joint(config.joint_dense_weight) for name, joint in kinds if joint}
    return {name: weight for name, weight in weights.items() if weight > 0}


def self_supervised(config: RunConfig) -> bool:
    """Return True if only the contrastive loss trains the backbone: λ = 1 from the first step.

    The classification head then is a linear probe on features that it does not change.
    """
    constant = not config.contrastive_weight_adaptive
    return bool(loss_weights(config)) and config.lambda_weight == 1 and constant


def inapplicable(config: RunConfig) -> frozenset[str]:
    """Return the fields that have no effect under the run's other fields, mainly `cl_mode`."""
    kinds = loss_kinds.LOSS_KINDS
    needed = _needed(kinds)
    values = tuple((name, getattr(config, name)) for name in needed)
    return _inapplicable(kinds, config.cl_mode, tuple(loss_weights(config)), values)


@cache
def _needed(kinds: tuple[LossKind, ...]) -> tuple[str, ...]:
    """Return the fields that the conditions of other fields name."""
    conditions = [c for kind in kinds for c in kind.all_fields().values() if c is not None]
    return tuple({name: None for name, _ in conditions})


@cache
def _inapplicable(
    kinds: tuple[LossKind, ...],
    cl_mode: str,
    losses: tuple[str, ...],
    values: tuple[tuple[str, object], ...],
) -> frozenset[str]:
    used = {
        name
        for kind in kinds
        if kind.name in losses
        for name, condition in kind.all_fields().items()
        if condition is None or condition in values
    }
    unused = {name for kind in kinds for name in kind.all_fields()} - used
    if cl_mode == "none":
        unused.add("lambda_weight")
    if cl_mode != "joint" or not losses:
        unused.add("joint_dense_weight")
    return frozenset(unused)


def applies(name: str, config: RunConfig) -> bool:
    """Return True if a field has an effect under the run's other fields, mainly `cl_mode`."""
    return name not in inapplicable(config)
