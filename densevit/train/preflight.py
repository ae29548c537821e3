"""Checks of device, data and benchmarks before a run trains."""

from __future__ import annotations

import torch

from densevit.config.run_config import RunConfig
from densevit.data.datasets import Data, check_fingerprint
from densevit.evaluate.measured_on import has_masks, measured_on
from densevit.evaluate.probes.masks import check_mask_splits, masked_sets
from densevit.models.backbone import check_model
from densevit.runs.directory import RunFolder
from densevit.train.initial_weights import initial_fingerprint
from densevit.utils.errors import UserError
from densevit.utils.files import write_json


def check_device(config: RunConfig) -> None:
    """Raise `UserError` if the config requires a GPU and there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda: torch sees no GPU here")


def check_batch_split(config: RunConfig, ranks: int) -> None:
    """Raise `UserError` if a batch does not divide evenly into processes and parts."""
    if config.batch_size % (ranks * config.grad_accumulation):
        raise UserError(
            f"batch_size: {config.batch_size} cannot be shared evenly by {ranks} processes "
            f"with grad_accumulation {config.grad_accumulation}"
        )


def check_all_masks(config: RunConfig) -> None:
    """Check all masks of the probes, and their images, before training, not after it."""
    if has_masks(config):
        check_mask_splits(*masked_sets(config, check_model(config)))


def write_fingerprint(folder: RunFolder, data: Data, config: RunConfig) -> None:
    """Write what identifies the run's images; reject others than those it began with."""
    found = measured_on(config, data, check_model(config))
    stored = folder.fingerprint()
    if config.init_checkpoint:
        found["init_checkpoint"] = initial_fingerprint(folder, config)
    if stored is not None:
        check_fingerprint(stored, found, folder.path)
        found["benchmarks"] = {**stored.get("benchmarks", {}), **found["benchmarks"]}
    write_json(folder.fingerprint_file, found)
