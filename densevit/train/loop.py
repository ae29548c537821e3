"""The training loop of a run, from its configuration to its results.

Initial weights come from a checkpoint in the run directory; else from `init_checkpoint` or
`pretrained`; else they are drawn from the run's seed. The same command therefore always resumes.
"""

from __future__ import annotations

import math
import signal
import time
from contextlib import nullcontext, suppress

from densevit.config.loss_modes import loss_weights
from densevit.config.run_config import RunConfig
from densevit.data.check_contents import check_contents
from densevit.data.datasets import Data, open_data
from densevit.data.loaders import let_go, on_device
from densevit.evaluate.correspondence import keep_matches
from densevit.models.backbone import check_model
from densevit.runs.directory import RunFolder
from densevit.train.build import build_trainer, on_gpu
from densevit.train.checkpointing import save
from densevit.train.evaluation import evaluate_missing, validate
from densevit.train.feature_health import measure_health
from densevit.train.log_metrics import log, log_interval
from densevit.train.preflight import (
    check_all_masks,
    check_batch_split,
    check_device,
    write_fingerprint,
)
from densevit.train.progress import Progress, progress
from densevit.train.startup_log import log_startup
from densevit.train.step import train_step
from densevit.train.system_metrics import sampling
from densevit.train.trainer import StopSignal, Trainer, normalization, write_line
from densevit.utils.distributed import all_gather, all_reduce_max, process_group
from densevit.utils.errors import RunError, Stopped, StoppedNow

STATUS_SECONDS = 2.0


def train(folder: RunFolder, stop_signal: StopSignal, config: RunConfig) -> None:
    """Train and evaluate the run of a folder, resuming from its state.

    Writes checkpoint/, metrics.jsonl, predictions/ and results.json.
    Errors: `UserError` for invalid configuration or data; `Stopped` after a signal, with a
    checkpoint of the last step.
    """
    folder.check_schema()
    check_device(config)
    with process_group("cuda" if on_gpu(config) else "cpu") as world:
        config = all_gather(config, world)[0]  # if they differ, that of the process that writes
        check_batch_split(config, world.ranks)
        data = open_data(config, check_model(config))
        if world.writes:
            check_contents(data)
            check_all_masks(config)
            write_fingerprint(folder, data, config)
        trainer = build_trainer(config, folder, data, stop_signal, world)
        try:
            sampled = sampling(trainer.engine.device) if world.writes else nullcontext()
            with sampled as trainer.system_metrics:
                _train(trainer, data)
            _write_matches(trainer, data, "after")
            evaluate_missing(trainer, data)
        except StoppedNow:
            raise
        except Stopped:
            save(trainer)
            _write_status(trainer)  # the launcher reads the progress
            raise
        finally:
            let_go(trainer.batches)
            trainer.checkpoints.finish()
        _write_status(trainer)


def _train(trainer: Trainer, data: Data) -> None:
    for line in data.notes():  # also of a run that goes on: its test sets may be new
        log.warning("%s", line)
    if trainer.saved[0] < 0:  # not resumed
        log_startup(trainer.config, trainer.engine.learner.model, trainer.steps)
        for line in data.skipped():
            log.info("%s", line)
        _check_health(trainer)  # the untrained network is the reference
        _write_matches(trainer, data, "before")
    with progress() as show:
        while True:
            # After the last epoch all sets are evaluated instead.
            if trainer.validated_epoch < trainer.epoch < trainer.config.epochs:
                validate(trainer, data)
                trainer.validated_epoch = trainer.epoch
                save(trainer)
            if trainer.step >= trainer.steps:
                break
            _train_epoch(trainer, show)
    if trainer.saved[0] != trainer.step:
        save(trainer)


def _write_matches(trainer: Trainer, data: Data, when: str) -> None:
    if trainer.world.writes:
        keep_matches(trainer.folder.matches_file(when), trainer.engine.learner.model, data.shown)


def _train_epoch(trainer: Trainer, show: Progress) -> None:
    """Train from the current step to the end of its epoch."""
    trainer.order.epoch = trainer.epoch
    trainer.order.start = trainer.step % trainer.steps_per_epoch
    engine, timer = trainer.engine, trainer.timer
    mean, std = normalization(engine)
    engine.learner.train()
    timer.read()
    trainer.steps_since_log = 0
    timer.mark("data")
    for crops in on_device(trainer.batches, engine.device):
        timer.mark(None)
        _stop_or_save(trainer)
        timer.mark("augment")
        batch = crops.developed(mean, std)
        trainer.scheduler.step_update(trainer.step)
        trainer.sums.add(train_step(engine, batch, trainer.weight, trainer.step, timer.mark))
        trainer.step, trainer.steps_since_log = trainer.step + 1, trainer.steps_since_log + 1
        timer.mark(None)
        if trainer.world.writes and not trainer.checkpoints.prepared:
            trainer.checkpoints.prepare(engine.weights())  # the optimizer has its state now
        last = trainer.step % trainer.steps_per_epoch == 0
        if trainer.step % trainer.config.log_every == 0 or last:
            log_interval(trainer, show)
        if trainer.step % trainer.config.health_every == 0 or last:
            _check_health(trainer)
        if time.monotonic() - trainer.status_written > STATUS_SECONDS:
            _write_status(trainer)
        timer.mark("data")
    timer.mark(None)


def _stop_or_save(trainer: Trainer) -> None:
    """Stop or write a checkpoint if due, in all processes before the same step."""
    minutes = (time.monotonic() - trainer.saved[1]) / 60
    due = trainer.world.writes and minutes >= trainer.config.checkpoint_minutes
    # One number for both: twice the stop signal, plus 1 if a checkpoint is due.
    request = all_reduce_max(
        2 * trainer.stop_signal() + (due and not trainer.checkpoints.busy), trainer.world
    )
    if request >= 2:
        raise Stopped(signal.Signals(request // 2).name)
    if request:
        save(trainer)


def _check_health(trainer: Trainer) -> None:
    """Log feature health; warn or stop if the features have collapsed."""
    metrics = measure_health(trainer.engine.learner, trainer.health_batch, trainer.weight)
    write_line(trainer, {f"health/{name}": value for name, value in metrics.items()})
    if trainer.step == 0:
        return  # features of an untrained network may be all alike
    before = trainer.collapsed
    collapsed = int(metrics.get("collapsed") == 1.0)
    trainer.collapsed = bool(all_reduce_max(collapsed, trainer.world))
    if not trainer.collapsed:
        return
    ranks = ", ".join(
        f"{kind} {metrics.get(f'{kind}_effective_rank', math.nan):.1f} of "
        f"{metrics.get(f'{kind}_effective_rank_max', math.nan):.0f}"
        for kind in loss_weights(trainer.config)
    )
    message = (
        f"the contrastive features have collapsed at step {trainer.step}: effective rank {ranks}; "
        f"a lower learning_rate, key_encoder: momentum or another temperature may help"
    )
    if trainer.config.on_collapse == "stop":
        raise RunError(f"{message}; with on_collapse: warn it continues")
    if not before:
        log.warning("%s", message)


def _write_status(trainer: Trainer) -> None:
    """Write the run's progress to status.json; an I/O error (full disk) is ignored."""
    trainer.status_written = time.monotonic()
    if not trainer.world.writes:
        return
    with suppress(OSError):
        trainer.folder.write_status(
            "running",
            epoch=trainer.epoch,
            epochs=trainer.config.epochs,
            step=trainer.step,
            steps=trainer.steps,
            started=trainer.started,
            spent=trainer.earlier_seconds + time.time() - trainer.started,
            top1=trainer.top1,
            images_per_second=trainer.speed,
            seconds_left=_seconds_left(trainer),
        )


def _seconds_left(trainer: Trainer) -> float:
    """Return the remaining seconds of training; 0 until a speed is known."""
    images = (trainer.steps - trainer.step) * trainer.config.batch_size
    return images / trainer.speed if trainer.speed else 0.0
