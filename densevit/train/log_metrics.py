"""Averages of training metrics, written to metrics.jsonl."""

from __future__ import annotations

import logging
import math

import torch

from densevit.runs import checkpoint_files
from densevit.train.learner import contrastive_weight
from densevit.train.progress import Progress, summary
from densevit.train.timing import peak_memory_mib
from densevit.train.trainer import Trainer, write_line
from densevit.utils.errors import Diverged

log = logging.getLogger("densevit")

# A run fails if this many consecutive steps, or a whole epoch, had no finite gradient. float16
# needs up to 16 such steps to find its scale.
SKIPPED_LIMIT = 20


def log_interval(trainer: Trainer, show: Progress) -> None:
    """Log one line of metrics, averaged since the last line. The only wait for the device."""
    engine, config = trainer.engine, trainer.config
    rate = max(group["lr"] for group in engine.optimizer.param_groups)  # layer_decay lowers others
    line = {f"train/{name}": value for name, value in _means(trainer).items()}
    phases, steps = trainer.timer.read(), trainer.steps_since_log
    trainer.seconds, trainer.steps_since_log = trainer.seconds + sum(phases.values()), 0
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
        # The loss of a network that cannot tell the positive from the negatives.
        line["train/chance_loss"] = math.log(config.queue_size + 1)
        line["train/temperature"] = float(torch.as_tensor(contrast.temperature()).detach())
    if trainer.system_metrics is not None:
        line |= trainer.system_metrics.read()
    write_line(trainer, line)
    left = (trainer.steps - trainer.step) * sum(phases.values()) / steps
    show(trainer.step, trainer.steps, summary(line, left))
    _check_skipped(trainer, rate)


def _means(trainer: Trainer) -> dict[str, float]:
    """Return means over the steps since the last line; NaN if all of them were skipped.

    Empty in that case for float16, which skips steps to find its scale.
    """
    names = [name for name in trainer.sums.values if name != "counted"]
    means = trainer.sums.means(trainer.world)
    if means or trainer.config.precision == "fp16":
        return means
    return dict.fromkeys(names, math.nan)


def _check_skipped(trainer: Trainer, rate: float) -> None:
    """Raise `Diverged` after too many consecutive skipped steps; log new skipped steps."""
    engine = trainer.engine
    in_a_row = int(engine.most_in_a_row)
    if in_a_row >= min(SKIPPED_LIMIT, trainer.steps_per_epoch):
        trainer.checkpoints.finish()  # the newest may still be written
        found = checkpoint_files.newest_first(trainer.folder.checkpoint_folder)
        raise Diverged(
            f"the loss or its gradient was not finite in {in_a_row} steps in a row, at step "
            f"{trainer.step} with learning_rate {rate:.3g}; they were skipped; the last good "
            f"checkpoint is {found[0] if found else 'not written yet'}; a smaller learning_rate "
            f"or precision: bf16 may help"
        )
    skipped = int(engine.skipped)
    if skipped > trainer.logged_skips:
        log.warning(
            "%d steps up to step %d were skipped, since the loss or its gradient was not finite",
            skipped - trainer.logged_skips, trainer.step,
        )  # fmt: skip
        trainer.logged_skips = skipped
