"""One run, from its configuration to its results.

Initialisation, in this order: a checkpoint in the run directory is continued from; else
`init_checkpoint` or `pretrained` gives the weights of the network; else they are drawn from the
run's seed. The same command therefore always carries on.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from contextlib import nullcontext, suppress

import torch

from densevit import checkpoint
from densevit.checkup import measure
from densevit.config import RunConfig
from densevit.correspond import keep_matches
from densevit.data.doctor import known_problems, quick_problems
from densevit.data.loading import let_go, on_device
from densevit.data.sources import Data, check_fingerprint, open_data
from densevit.distributed import World, agreed, gathered, joined
from densevit.errors import Diverged, RunError, Stopped, StoppedNow, UserError
from densevit.exam import evaluate_missing, validate
from densevit.frozen.masks import MaskedImages, check_masks
from densevit.gauges import sampling
from densevit.initial import begun_with
from densevit.meter import peak_memory_mib
from densevit.model import check_model, has_class_token
from densevit.objective import contrastive_weight
from densevit.probes import masked_sets
from densevit.progress import Progress, facts, progress
from densevit.rundir import RunFolder, read_json, write_json
from densevit.step import train_step
from densevit.trainer import Asked, Trainer, build_trainer, looks, on_gpu, save, write_line

log = logging.getLogger("densevit")
STATUS_SECONDS = 2.0
# A run ends when so many steps in a row, or a whole epoch, had no finite gradient. float16 needs up
# to 16 of them to find its scale.
SKIPPED_LIMIT = 20


def train(folder: RunFolder, asked: Asked, config: RunConfig) -> None:
    """Train and evaluate the run of a folder, from where it stands; finished work is not redone.

    Writes checkpoint/, metrics.jsonl, predictions/ and results.json.
    Errors: `UserError` for a configuration or data that cannot work; `Stopped` after a signal, with
    a checkpoint of the step that was reached.
    """
    check_device(config)
    with joined("cuda" if on_gpu(config) else "cpu") as world:
        config = gathered(config, world)[0]  # where they differ, that of the process that writes
        _check_parts(config, world)
        data = open_data(config, check_model(config))
        if world.writes:
            _refuse_damaged(data)
            _refuse_masks(config)
            _remember_fingerprint(folder, data, config)
        trainer = build_trainer(config, folder, data, asked, world)
        try:
            sampled = sampling(trainer.engine.device) if world.writes else nullcontext()
            with sampled as trainer.gauges:
                _train(trainer, data)
            _keep_matches(trainer, data, "after")
            evaluate_missing(trainer, data)
        except StoppedNow:
            raise
        except Stopped:
            save(trainer)
            _tell(trainer)  # how far it came is what its launcher counts
            raise
        finally:
            let_go(trainer.batches)
            trainer.checkpoints.finish()
        _tell(trainer)


def check_device(config: RunConfig) -> None:
    """Errors: `UserError` when a GPU is wanted where there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda: torch sees no GPU here")


def _train(trainer: Trainer, data: Data) -> None:
    if trainer.saved[0] < 0:  # not continued
        _tell_meaning(trainer)
        _check_health(trainer)  # of the untrained network, which the rest is compared with
        _keep_matches(trainer, data, "before")
    with progress() as show:
        while True:
            # The last epoch is evaluated later, on everything.
            if trainer.validated < trainer.epoch < trainer.config.epochs:
                validate(trainer, data)
                trainer.validated = trainer.epoch
                save(trainer)
            if trainer.step >= trainer.steps:
                break
            _train_epoch(trainer, show)
    if trainer.saved[0] != trainer.step:
        save(trainer)


def _keep_matches(trainer: Trainer, data: Data, when: str) -> None:
    if trainer.world.writes:
        keep_matches(trainer.folder.matches_file(when), trainer.engine.learner.model, data.val)


def _tell_meaning(trainer: Trainer) -> None:
    """Say once what a reader of the configuration may not expect."""
    config, learner = trainer.config, trainer.engine.learner
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


def _train_epoch(trainer: Trainer, show: Progress) -> None:
    """Train to the end of the epoch, from wherever in it the run stands."""
    trainer.order.epoch = trainer.epoch
    trainer.order.start = trainer.step % trainer.steps_per_epoch
    engine, clock, look = trainer.engine, trainer.clock, looks(trainer.engine)
    engine.learner.train()
    clock.read()
    trainer.timed = 0
    clock.mark("data")
    for crops in on_device(trainer.batches, engine.device):
        clock.mark(None)
        _boundary(trainer)
        clock.mark("augment")
        batch = crops.developed(*look)
        trainer.scheduler.step_update(trainer.step)
        trainer.tally.add(train_step(engine, batch, trainer.weight, trainer.step, clock.mark))
        trainer.step, trainer.timed = trainer.step + 1, trainer.timed + 1
        clock.mark(None)
        if trainer.world.writes and not trainer.checkpoints.prepared:
            trainer.checkpoints.prepare(engine.weights())  # the optimiser has its own now
        last = trainer.step % trainer.steps_per_epoch == 0
        if trainer.step % trainer.config.log_every == 0 or last:
            _log_interval(trainer, show)
        if trainer.step % trainer.config.health_every == 0 or last:
            _check_health(trainer)
        if time.monotonic() - trainer.told > STATUS_SECONDS:
            _tell(trainer)
        clock.mark("data")
    clock.mark(None)


def _boundary(trainer: Trainer) -> None:
    """Between two steps: stop, or write a checkpoint, on all processes at the same one."""
    minutes = (time.monotonic() - trainer.saved[1]) / 60
    due = trainer.world.writes and minutes >= trainer.config.checkpoint_minutes
    word = agreed(2 * trainer.asked() + (due and not trainer.checkpoints.busy), trainer.world)
    if word >= 2:
        raise Stopped(signal.Signals(word // 2).name)
    if word:
        save(trainer)


def _check_health(trainer: Trainer) -> None:
    """Log the health of the features; say so, or stop, when they collapse."""
    numbers = measure(trainer.engine.learner, trainer.probe, trainer.weight)
    write_line(trainer, {f"health/{name}": value for name, value in numbers.items()})
    if trainer.step == 0:
        return  # an untrained network may well look alike everywhere
    fallen = bool(agreed(int(numbers.get("collapsed") == 1.0), trainer.world))
    before, trainer.collapsed = trainer.collapsed, fallen
    if not fallen:
        return
    ranks = ", ".join(
        f"{kind} {numbers.get(f'{kind}_effective_rank', math.nan):.1f}"
        for kind in trainer.engine.learner.contrast.weights
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


def _log_interval(trainer: Trainer, show: Progress) -> None:
    """One line of metrics: the means since the last line. The only wait for the device."""
    engine, config = trainer.engine, trainer.config
    rate = max(group["lr"] for group in engine.optimizer.param_groups)  # less below, with decay
    line = {f"train/{name}": value for name, value in _means(trainer).items()}
    phases, steps = trainer.clock.read(), trainer.timed
    trainer.seconds, trainer.timed = trainer.seconds + sum(phases.values()), 0
    line["train/learning_rate"] = rate
    line["train/images_per_second"] = steps * config.batch_size / sum(phases.values())
    trainer.speed = line["train/images_per_second"]
    line |= {f"time/{phase}_ms": 1000 * value / steps for phase, value in phases.items()}
    line["train/peak_memory_mib"] = peak_memory_mib(engine.device)
    line["train/skipped_steps"] = float(engine.skipped)
    contrast = engine.learner.contrast
    if contrast is not None:
        progress = (trainer.step - 1) / max(trainer.steps, 1)
        line["train/lambda"] = contrastive_weight(config, progress)
        # What a network earns that cannot tell the positive from the negatives.
        line["train/chance_loss"] = math.log(config.queue_size + 1)
        line["train/temperature"] = float(torch.as_tensor(contrast.temperature()).detach())
    if trainer.gauges is not None:
        line |= trainer.gauges.read()
    write_line(trainer, line)
    left = (trainer.steps - trainer.step) * sum(phases.values()) / steps
    show(trainer.step, trainer.steps, facts(line, left))
    _check_skipped(trainer, rate)


def _means(trainer: Trainer) -> dict[str, float]:
    """The means of the steps since the last line; NaN if all of them were skipped.

    Of float16, which skips steps to find its scale, nothing is said then.
    """
    names = [name for name in trainer.tally.sums if name != "counted"]
    means = trainer.tally.means(trainer.world)
    if means or trainer.config.precision == "fp16":
        return means
    return dict.fromkeys(names, math.nan)


def _check_skipped(trainer: Trainer, rate: float) -> None:
    """Stop a run that has come to an end of its numbers; mention steps that were skipped."""
    engine = trainer.engine
    in_a_row = int(engine.most_in_a_row)
    if in_a_row >= min(SKIPPED_LIMIT, trainer.steps_per_epoch):
        trainer.checkpoints.finish()  # the newest may be on its way
        found = checkpoint.newest_first(trainer.folder.checkpoint_folder)
        raise Diverged(
            f"the loss or its gradient was not finite in {in_a_row} steps in a row, at step "
            f"{trainer.step} with learning_rate {rate:.3g}; they were skipped; the last good "
            f"checkpoint is {found[0] if found else 'not written yet'}; a smaller learning_rate "
            f"or precision: bf16 may help"
        )
    skipped = int(engine.skipped)
    if skipped > trainer.mentioned:
        log.warning(
            "%d steps up to step %d were skipped, since the loss or its gradient was not finite",
            skipped - trainer.mentioned, trainer.step,
        )  # fmt: skip
        trainer.mentioned = skipped


def _tell(trainer: Trainer) -> None:
    """Say in status.json how far the run is; on a full disk another time."""
    trainer.told = time.monotonic()
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
            spent=trainer.spent + time.time() - trainer.started,
            top1=trainer.top1,
            images_per_second=trainer.speed,
            seconds_left=_seconds_left(trainer),
        )


def _seconds_left(trainer: Trainer) -> float:
    """Of training; 0 as long as nothing was timed."""
    images = (trainer.steps - trainer.step) * trainer.config.batch_size
    return images / trainer.speed if trainer.speed else 0.0


def _check_parts(config: RunConfig, world: World) -> None:
    if config.batch_size % (world.ranks * config.grad_accumulation):
        raise UserError(
            f"batch_size: {config.batch_size} cannot be shared evenly by {world.ranks} processes "
            f"with grad_accumulation {config.grad_accumulation}"
        )


def _refuse_damaged(data: Data) -> None:
    """Look at the test sets once, as `densevit data check` does, which it keeps; what is known of
    the training pictures counts as well, though they are too many to be looked at here."""
    for name, images in {"train": data.train, "val": data.val, **data.benchmarks}.items():
        found = known_problems(images) if name == "train" else quick_problems(images)
        if found:
            more = f" (and {len(found) - 1} more: densevit data check)" if found[1:] else ""
            raise UserError(f"{name}: {found[0]}{more}")


def _refuse_masks(config: RunConfig) -> None:
    """Read all masks of the dense-probe now, and not when the training is over."""
    if _has_masks(config):
        for masked in _masked(config):
            check_masks(masked)


def _has_masks(config: RunConfig) -> bool:
    """Whether the run reads masks from files; the drawn ones are as they should be."""
    return "dense-probe" in config.probes and (config.masks or config.dataset) != "shapes"


def _masked(config: RunConfig) -> tuple[MaskedImages, MaskedImages]:
    return masked_sets(config, check_model(config))


def _remember_fingerprint(folder: RunFolder, data: Data, config: RunConfig) -> None:
    found = data.fingerprint()
    held = read_json(folder.fingerprint_file)
    if config.init_checkpoint:
        found["init_checkpoint"] = begun_with(folder, config.init_checkpoint)
    if _has_masks(config):
        for split, masked in zip(("train", "val"), _masked(config), strict=True):
            found["benchmarks"][f"masked {split}"] = masked.fingerprint()
    if held is not None:
        check_fingerprint(held, found, folder.path)
        found["benchmarks"] = {**held["benchmarks"], **found["benchmarks"]}
    write_json(folder.fingerprint_file, found)
