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
from torch.utils.data import DataLoader

from densevit import checkpoint
from densevit.checkup import PROBE_PICTURES, measure
from densevit.config import SCHEMA_VERSION, RunConfig, identity
from densevit.data.loading import Batch, EpochOrder, plain_batches, probe_batch, training_batches
from densevit.data.sources import Data, Images, check_fingerprint, open_data
from densevit.data.views import derived_seed, plain_view, training_views
from densevit.errors import RunError, UserError
from densevit.evaluate import predict, write_predictions
from densevit.model import check_model, has_class_token
from densevit.objective import (
    Learner,
    build_learner,
    build_optimizer,
    compute_losses,
    contrastive_weight,
    optimise,
)
from densevit.rundir import RunFolder, read_json, write_json
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

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
    learner: Learner
    optimizer: torch.optim.Optimizer
    scheduler: CosineLRScheduler
    batches: DataLoader
    order: EpochOrder
    probe: Batch
    boundary: Boundary
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.time)
    told: float = 0.0
    collapsed: bool = False  # at the last look

    @property
    def steps_per_epoch(self) -> int:
        return len(self.batches)

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def weight(self) -> float:
        """λ of the step that comes next."""
        return contrastive_weight(self.config, self.step / max(self.steps, 1))


def train(folder: RunFolder, boundary: Boundary) -> None:
    """Train and evaluate the run of a folder, from where it stands; finished work is not redone.

    Writes checkpoint/, metrics.jsonl, predictions/ and results.json.
    Errors: `UserError` for a configuration or data that cannot work.
    """
    config = folder.config()
    check_device(config)
    data = open_data(config, check_model(config))
    _remember_fingerprint(folder, data)
    trainer = _trainer(config, folder, data, boundary)
    _resume(trainer)
    if trainer.step == 0:
        _tell_meaning(trainer)
        _check_health(trainer)  # of the untrained network, which the rest is compared with
    for epoch in range(trainer.epoch, config.epochs):
        _train_epoch(trainer, epoch)
        if trainer.epoch < config.epochs:  # the last epoch is evaluated below, on everything
            _validate(trainer, data.val)
        _save(trainer)
    _evaluate_missing(trainer, data)
    _tell(trainer)


def check_device(config: RunConfig) -> None:
    """Errors: `UserError` when a GPU is wanted where there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda: torch sees no GPU here")


def _trainer(config: RunConfig, folder: RunFolder, data: Data, boundary: Boundary) -> Trainer:
    device = _device(config)
    torch.manual_seed(config.seed)
    learner = build_learner(config, len(data.train.classes), device)
    pictures = learner.model.pictures()
    views = training_views(learner.model.image_size, pictures["mean"], pictures["std"])
    batches, order = training_batches(
        data.train,
        views,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        pin=device.type == "cuda",
    )
    optimizer = build_optimizer(learner)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=(config.epochs - config.warmup_epochs) * len(batches),
        warmup_t=config.warmup_epochs * len(batches),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    probe = probe_batch(data.val, views, PROBE_PICTURES)
    return Trainer(
        config, folder, device, learner, optimizer, scheduler, batches, order, probe, boundary
    )


def _tell_meaning(trainer: Trainer) -> None:
    """Say once what a reader of the configuration may not expect."""
    config, learner = trainer.config, trainer.learner
    if config.cl_mode != "none" and learner.contrast is None:
        log.info("lambda_weight 0: supervised training, no contrastive loss is computed")
    if learner.model.probe:
        log.info(
            "lambda_weight 1: self-supervised; accuracies are those of a linear probe, trained "
            "beside the backbone on features that it does not change"
        )
    if "global" in learner.model.heads and not has_class_token(learner.model.backbone):
        log.info("%s has no class token: the mean of its patches stands for the picture",
                 config.model_name)  # fmt: skip


def _train_epoch(trainer: Trainer, epoch: int) -> None:
    trainer.order.epoch = epoch
    trainer.learner.model.train()
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
        if trainer.step % trainer.config.health_every == 0 or last:
            paused = time.perf_counter()
            _check_health(trainer)
            since += time.perf_counter() - paused  # no part of the speed of training
        if time.monotonic() - trainer.told > STATUS_SECONDS:
            _tell(trainer)
    trainer.epoch = epoch + 1


def _train_step(trainer: Trainer, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """One step; its numbers stay on the device."""
    trainer.scheduler.step_update(trainer.step)
    losses = compute_losses(trainer.learner, batch.to(trainer.device), trainer.weight, generator)
    optimise(trainer.learner, trainer.optimizer, losses)
    numbers = {
        "loss": losses.total.detach(),
        "classification_loss": losses.classification.detach(),
        "top1": 100 * losses.top1,
    }
    if losses.contrastive is not None:
        numbers["contrastive_loss"] = losses.contrastive.detach()
    if len(losses.parts) > 1:
        numbers |= {f"{kind}_loss": loss for kind, loss in losses.parts.items()}
    return numbers


def _check_health(trainer: Trainer) -> None:
    """Log the health of the features; say so, or stop, when they collapse."""
    numbers = measure(trainer.learner, trainer.probe, trainer.weight)
    _write_line(trainer, {f"health/{name}": value for name, value in numbers.items()})
    if trainer.step == 0:
        return  # an untrained network may well look alike everywhere
    before, trainer.collapsed = trainer.collapsed, numbers.get("collapsed") == 1.0
    if not trainer.collapsed:
        return
    ranks = ", ".join(
        f"{kind} {numbers[f'{kind}_effective_rank']:.1f}"
        for kind in trainer.learner.contrast.weights
    )
    told = (
        f"the contrastive features have collapsed at step {trainer.step}: effective rank {ranks} "
        f"of {trainer.config.dense_dim}; a lower learning_rate, key_encoder: momentum or another "
        f"temperature may help"
    )
    if trainer.config.on_collapse == "stop":
        raise RunError(f"{told}; on_collapse: warn trains on")
    if not before:
        log.warning("%s", told)


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
    contrast = trainer.learner.contrast
    if contrast is not None:
        progress = (trainer.step - 1) / max(trainer.steps, 1)
        line["train/lambda"] = contrastive_weight(trainer.config, progress)
        # What a network earns that cannot tell the positive from the negatives.
        line["train/chance_loss"] = math.log(trainer.config.queue_size + 1)
        with torch.no_grad():
            line["train/temperature"] = float(contrast.temperature())
    _write_line(trainer, line)


def _validate(trainer: Trainer, images: Images) -> None:
    numbers = predict(
        trainer.learner.model, _plain(trainer, images), trainer.device, trainer.boundary
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
            trainer.learner.model, _plain(trainer, images), trainer.device, trainer.boundary
        )
        write_predictions(predictions, images, folder.predictions_file(name))
        numbers = results["benchmarks"][name] = predictions.summary()
        log.info("%s: top-1 %.1f %% of %d", name, numbers["top1"], numbers["n"])
        line.update({f"{name}/{key}": numbers[key] for key in ("top1", "top5", "loss")})
    if line:
        _write_line(trainer, line)
        write_json(folder.results_file, results)


def _plain(trainer: Trainer, images: Images) -> DataLoader:
    view = plain_view(trainer.learner.model.image_size, **trainer.learner.model.pictures())
    pin = trainer.device.type == "cuda"
    batch_size = 2 * trainer.config.batch_size  # what a training step holds, without its gradients
    return plain_batches(
        images, view, batch_size=batch_size, workers=trainer.config.workers, pin=pin
    )


def _save(trainer: Trainer) -> None:
    """A checkpoint at an epoch's end, with the position in metrics.jsonl that belongs to it."""
    with trainer.folder.metrics_file.open("ab") as file:
        os.fsync(file.fileno())  # a checkpoint must not outlive the lines that it counts
    state = {
        "epoch": trainer.epoch,
        "step": trainer.step,
        "seconds": trainer.seconds,
        "collapsed": trainer.collapsed,
        "metrics_bytes": trainer.folder.metrics_file.stat().st_size,
        "optimizer": trainer.optimizer.state_dict(),
        **{name: part.state_dict() for name, part in _parts(trainer.learner).items()},
    }
    checkpoint.save(trainer.folder.checkpoint_folder, state)


def _parts(learner: Learner) -> dict[str, nn.Module]:
    """What a checkpoint holds of a learner."""
    parts = {"model": learner.model, "contrast": learner.contrast, "averaged": learner.averaged}
    return {name: part for name, part in parts.items() if part is not None}


def _resume(trainer: Trainer) -> None:
    """Continue from the checkpoint, if any, and cut off the metrics that were logged after it."""
    state = checkpoint.load(trainer.folder.checkpoint_folder, trainer.device)
    if state is not None:
        for name, part in _parts(trainer.learner).items():
            part.load_state_dict(state[name])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.epoch, trainer.step = state["epoch"], state["step"]
        trainer.seconds, trainer.collapsed = state["seconds"], state["collapsed"]
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
