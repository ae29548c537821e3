"""One run, from its configuration to its results.

Initialisation, in this order: a checkpoint in the run directory is continued from; else weights
are drawn from the run's seed. The same command therefore always carries on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from densevit import checkpoint
from densevit.config import SCHEMA_VERSION, RunConfig, identity
from densevit.contrast.losses import ContrastiveLoss, Projected
from densevit.data.loading import EpochOrder, plain_batches, training_batches
from densevit.data.sources import Data, Images, check_fingerprint, open_data
from densevit.data.views import derived_seed, plain_view, training_views
from densevit.errors import RunError, UserError
from densevit.evaluate import predict, write_predictions
from densevit.model import DenseViT, Tokens, check_model
from densevit.rundir import RunFolder, read_json, write_json
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

from timm.optim import param_groups_weight_decay  # noqa: E402
from timm.scheduler import CosineLRScheduler  # noqa: E402

log = logging.getLogger("densevit")
DRAWS = 3  # the random stream of sampling and matching; see data.loading for the others
STATUS_SECONDS = 2.0

# Called at every step boundary; raises to stop the run there.
Boundary = Callable[[], None]


@dataclass
class Trainer:
    """The moving parts of a run; `step` and `epoch` are done, `seconds` were spent on them."""

    config: RunConfig
    folder: RunFolder
    device: torch.device
    model: DenseViT
    contrast: ContrastiveLoss | None
    averaged: AveragedModel | None  # the momentum encoder of the keys
    optimizer: torch.optim.Optimizer
    batches: DataLoader
    order: EpochOrder
    boundary: Boundary
    steps_per_epoch: int
    scheduler: CosineLRScheduler
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.time)
    told: float = 0.0

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


def train(folder: RunFolder, boundary: Boundary) -> None:
    """Train and evaluate the run of a folder, from where it stands; finished work is not redone.

    Writes checkpoint/, metrics.jsonl, predictions/ and results.json.
    Errors: `UserError` for a configuration or data that cannot work.
    """
    config = folder.config()
    check_supported(config)
    data = open_data(config, check_model(config))
    device = _device(config)
    torch.manual_seed(config.seed)
    _remember_fingerprint(folder, data)
    model = DenseViT(config, len(data.train.classes)).to(device)
    trainer = _trainer(config, folder, device, model, data.train, boundary)
    _resume(trainer)
    for epoch in range(trainer.epoch, config.epochs):
        _train_epoch(trainer, epoch)
        if trainer.epoch < config.epochs:  # the last epoch is evaluated below, on everything
            _validate(trainer, data.val)
        _save(trainer)
    _evaluate_missing(trainer, data)
    _tell(trainer)


def check_supported(config: RunConfig) -> None:
    """Refuse what can be planned but not trained yet, and a GPU where there is none.

    Errors: `UserError` naming the field.
    """
    unbuilt = {
        "cl_mode": "joint",
        "dense_negatives": "pooled",
        "correspondence_features": "geometry",
    }
    for name, value in unbuilt.items():
        if config.science().get(name) == value:
            raise UserError(f"{name}: {value} can be planned but not trained by this version")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda: torch sees no GPU here")


def _trainer(
    config: RunConfig,
    folder: RunFolder,
    device: torch.device,
    model: DenseViT,
    images: Images,
    boundary: Boundary,
) -> Trainer:
    contrast = None if config.cl_mode == "none" else ContrastiveLoss(config).to(device)
    averaged = None
    if contrast is not None and config.key_encoder == "momentum":
        averaging = get_ema_multi_avg_fn(config.momentum)
        averaged = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
        averaged.update_parameters(model)  # the average begins with the initial weights
    pictures = model.pictures()
    views = training_views(model.image_size, pictures["mean"], pictures["std"])
    batches, order = training_batches(
        images,
        views,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        pin=device.type == "cuda",
    )
    groups = param_groups_weight_decay(model, config.weight_decay)
    if contrast is not None and config.learnable_temp:
        groups.append({"params": list(contrast.parameters()), "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=(config.epochs - config.warmup_epochs) * len(batches),
        warmup_t=config.warmup_epochs * len(batches),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    return Trainer(
        config, folder, device, model, contrast, averaged, optimizer, batches, order, boundary,
        len(batches), scheduler,
    )  # fmt: skip


def _train_epoch(trainer: Trainer, epoch: int) -> None:
    trainer.order.epoch = epoch
    trainer.model.train()
    # A generator an epoch: a run continued at an epoch's end draws what it would have drawn.
    generator = torch.Generator(trainer.device)
    generator.manual_seed(derived_seed(DRAWS, trainer.config.seed, epoch))
    torch.manual_seed(derived_seed(DRAWS, trainer.config.seed, epoch, 1))  # drop path and the like
    sums: dict[str, Tensor] = {}
    since, count = time.perf_counter(), 0
    for batch in trainer.batches:
        trainer.boundary()
        for name, value in _train_step(trainer, batch, generator).items():
            sums[name] = sums.get(name, 0) + value
        count += 1
        trainer.step += 1
        last = trainer.step % trainer.steps_per_epoch == 0
        if trainer.step % trainer.config.log_every == 0 or last:
            _log_interval(trainer, sums, count, time.perf_counter() - since)
            trainer.seconds += time.perf_counter() - since
            sums, since, count = {}, time.perf_counter(), 0
        if time.monotonic() - trainer.told > STATUS_SECONDS:
            _tell(trainer)
    trainer.epoch = epoch + 1


def _train_step(
    trainer: Trainer, batch: list[Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """One step; its numbers stay on the device."""
    config, model, contrast = trainer.config, trainer.model, trainer.contrast
    view1, view2, labels, ids = (part.to(trainer.device, non_blocking=True) for part in batch)
    trainer.scheduler.step_update(trainer.step)
    tokens = model(torch.cat([view1, view2]))  # one pass over (2B, 3, S, S)
    first, second = (
        type(tokens)(*half) for half in zip(*(t.chunk(2) for t in tokens), strict=True)
    )
    classification = F.cross_entropy(tokens.logits, labels.repeat(2))  # both views are classified
    hits = (first.logits.argmax(dim=1) == labels).float().mean()
    numbers = {"classification_loss": classification.detach(), "top1": 100 * hits}
    loss = classification
    if contrast is not None:
        weight = contrastive_weight(config, trainer.step / max(trainer.steps, 1))
        contrastive = contrast(
            Projected(first, model.projection), _keys(trainer, view2, second), ids, generator
        )
        loss = (1 - weight) * classification + weight * contrastive
        numbers["contrastive_loss"] = contrastive.detach()
    trainer.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.grad_clip > 0:
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    trainer.optimizer.step()
    if contrast is not None:
        contrast.clamp_temperature()
    if trainer.averaged is not None:
        trainer.averaged.update_parameters(model)
    return {"loss": loss.detach(), **numbers}


def _keys(trainer: Trainer, images: Tensor, tokens: Tokens) -> Projected:
    """View 2 as keys: the tokens at hand, or those of the momentum encoder (MoCo, section 3.2)."""
    if trainer.averaged is None:
        return Projected(tokens, trainer.model.projection)
    with torch.no_grad():
        return Projected(trainer.averaged(images), trainer.averaged.module.projection)


def contrastive_weight(config: RunConfig, progress: float) -> float:
    """λ at a share of the run's steps in [0, 1]: constant, or rising linearly from 0."""
    return config.lambda_weight * (progress if config.contrastive_weight_adaptive else 1.0)


def _log_interval(trainer: Trainer, sums: dict[str, Tensor], count: int, seconds: float) -> None:
    """One line of metrics: the means since the last line. The only wait for the device."""
    values = torch.stack(list(sums.values())).div(count).tolist()
    line = {f"train/{name}": value for name, value in zip(sums, values, strict=True)}
    if not math.isfinite(line["train/loss"]):
        raise RunError(
            f"the loss is {line['train/loss']} at step {trainer.step} with learning_rate "
            f"{trainer.optimizer.param_groups[0]['lr']:.3g}; a smaller learning_rate may help"
        )
    line["train/learning_rate"] = trainer.optimizer.param_groups[0]["lr"]
    line["train/images_per_second"] = count * trainer.config.batch_size / seconds
    if trainer.contrast is not None:
        line["train/lambda"] = contrastive_weight(
            trainer.config, (trainer.step - 1) / max(trainer.steps, 1)
        )
        with torch.no_grad():
            line["train/temperature"] = float(trainer.contrast.temperature())
    _write_line(trainer, line)


def _validate(trainer: Trainer, images: Images) -> None:
    numbers = predict(
        trainer.model, _plain(trainer, images), trainer.device, trainer.boundary
    ).summary()
    _write_line(trainer, {f"val/{name}": numbers[name] for name in ("top1", "top5", "loss")})
    log.info(
        "epoch %d of %d: val top-1 %.1f %%, top-5 %.1f %%",
        trainer.epoch, trainer.config.epochs, numbers["top1"], numbers["top5"],
    )  # fmt: skip


def _evaluate_missing(trainer: Trainer, data: Data) -> None:
    """Evaluate val and the benchmarks that results.json lacks; then the run is finished."""
    folder, config = trainer.folder, trainer.config
    ids = identity(config)
    results: dict[str, Any] = read_json(folder.results_file) or {
        "run": ids.run,
        "cell": ids.cell,
        "seed": config.seed,
        "schema_version": SCHEMA_VERSION,
        "epochs": config.epochs,
        "train_seconds": trainer.seconds,
        "benchmarks": {},
    }
    line = {}
    for name, images in {"val": data.val, **data.benchmarks}.items():
        if name in results["benchmarks"]:
            continue
        predictions = predict(
            trainer.model, _plain(trainer, images), trainer.device, trainer.boundary
        )
        write_predictions(predictions, images, folder.predictions_file(name))
        numbers = results["benchmarks"][name] = predictions.summary()
        log.info("%s: top-1 %.1f %% of %d", name, numbers["top1"], numbers["n"])
        line.update({f"{name}/{key}": numbers[key] for key in ("top1", "top5", "loss")})
    if line:
        _write_line(trainer, line)
        write_json(folder.results_file, results)


def _plain(trainer: Trainer, images: Images) -> DataLoader:
    view = plain_view(trainer.model.image_size, **trainer.model.pictures())
    pin = trainer.device.type == "cuda"
    batch_size = 2 * trainer.config.batch_size  # what a training step holds, without its gradients
    return plain_batches(
        images, view, batch_size=batch_size, workers=trainer.config.workers, pin=pin
    )


def _save(trainer: Trainer) -> None:
    """A checkpoint at an epoch's end, with the position in metrics.jsonl that belongs to it."""
    contrast = trainer.contrast
    with trainer.folder.metrics_file.open("ab") as file:
        os.fsync(file.fileno())  # a checkpoint must not outlive the lines that it counts
    state = {
        "epoch": trainer.epoch,
        "step": trainer.step,
        "seconds": trainer.seconds,
        "metrics_bytes": trainer.folder.metrics_file.stat().st_size,
        "model": trainer.model.state_dict(),
        "contrast": contrast.state_dict() if contrast is not None else {},
        "averaged": trainer.averaged.state_dict() if trainer.averaged is not None else {},
        "optimizer": trainer.optimizer.state_dict(),
    }
    checkpoint.save(trainer.folder.checkpoint_folder, state)


def _resume(trainer: Trainer) -> None:
    """Continue from the checkpoint, if any, and cut off the metrics that were logged after it."""
    state = checkpoint.load(trainer.folder.checkpoint_folder, trainer.device)
    if state is not None:
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.contrast is not None:
            trainer.contrast.load_state_dict(state["contrast"])
        if trainer.averaged is not None:
            trainer.averaged.load_state_dict(state["averaged"])
        trainer.epoch, trainer.step = state["epoch"], state["step"]
        trainer.seconds = state["seconds"]
        log.info("continuing after epoch %d of %d", trainer.epoch, trainer.config.epochs)
    folder = trainer.folder
    if folder.results_file.exists():  # only a benchmark is missing
        if state is None:
            raise UserError(
                f"{folder.path}: its checkpoint is gone, so that nothing more can be evaluated; "
                f"remove the folder to train the run again"
            )
        return
    kept = state["metrics_bytes"] if state is not None else 0
    with folder.metrics_file.open("ab") as file:
        if file.tell() < kept:
            raise UserError(
                f"{folder.metrics_file}: has lost lines that its checkpoint counts; "
                f"remove {folder.path} to train the run again"
            )
        file.truncate(kept)  # lines after the last checkpoint are written again


def _write_line(trainer: Trainer, metrics: dict[str, float]) -> None:
    epoch = round(trainer.step / trainer.steps_per_epoch, 4)
    line = {"step": trainer.step, "epoch": epoch, "time": time.time(), **metrics}
    with trainer.folder.metrics_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _tell(trainer: Trainer) -> None:
    """Say in status.json how far the run is."""
    trainer.told = time.monotonic()
    trainer.folder.write_status(
        "running",
        epoch=trainer.step // trainer.steps_per_epoch,
        epochs=trainer.config.epochs,
        step=trainer.step,
        steps=trainer.steps,
        started=trainer.started,
    )


def _remember_fingerprint(folder: RunFolder, data: Data) -> None:
    found = data.fingerprint()
    held = read_json(folder.fingerprint_file)
    if held is not None:
        check_fingerprint(held, found, folder.path)
        found["benchmarks"] = {**held["benchmarks"], **found["benchmarks"]}
    write_json(folder.fingerprint_file, found)


def _device(config: RunConfig) -> torch.device:
    wanted = config.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if wanted else "cpu")
