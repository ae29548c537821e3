"""The trainer: all state of a run in training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from densevit.config.run_config import RunConfig
from densevit.data.batch import Batch, Crops
from densevit.data.loaders import BatchOrder
from densevit.runs import checkpoint
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import MetricsFile
from densevit.train.learner import contrastive_weight
from densevit.train.step import Engine
from densevit.train.system_metrics import SystemMetrics
from densevit.train.timing import MetricSums, PhaseTimer
from densevit.utils.distributed import World
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from timm.scheduler.cosine_lr import CosineLRScheduler  # noqa: E402

log = logging.getLogger("densevit")

StopSignal = Callable[[], int]  # returns the received stop signal, 0 if none


@dataclass
class Trainer:
    """The state of a run in training."""

    config: RunConfig
    folder: RunFolder
    engine: Engine
    scheduler: CosineLRScheduler
    batches: Iterable[Crops]
    order: BatchOrder
    classes: tuple[str, ...]
    health_batch: Batch
    stop_signal: StopSignal
    checkpoints: checkpoint.Checkpoints
    timer: PhaseTimer
    metrics: MetricsFile | None = None  # only in the process that writes
    system_metrics: SystemMetrics | None = None  # likewise, while it trains
    sums: MetricSums = field(default_factory=MetricSums)  # since the last logged line
    step: int = 0  # completed steps
    seconds: float = 0.0  # of these steps
    steps_since_log: int = 0
    validated_epoch: int = 0
    collapsed: bool = False  # at the last measurement of feature health
    logged_skips: int = 0  # skipped steps that the log has reported
    started: float = field(default_factory=time.time)
    earlier_seconds: float = 0.0  # of earlier starts of the run
    speed: float = 0.0  # images per second, at the last logged line
    top1: float | None = None  # latest on val
    saved: tuple[int, float] = (-1, 0.0)  # step and monotonic time of the last checkpoint
    status_written: float = 0.0  # monotonic time of the last status

    @property
    def world(self) -> World:
        return self.engine.world

    @property
    def steps_per_epoch(self) -> int:
        return len(self.order)

    @property
    def epoch(self) -> int:
        """Return the number of completed epochs."""
        return self.step // self.steps_per_epoch

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def weight(self) -> float:
        """Return λ of the next step."""
        return contrastive_weight(self.config, self.step / max(self.steps, 1))


def normalization(engine: Engine) -> tuple[Tensor, Tensor]:
    """Return the network's normalization mean and standard deviation (3,), on its device."""
    config = engine.learner.model.preprocessing()
    mean, std = (torch.tensor(config[key], device=engine.device) for key in ("mean", "std"))
    return mean, std


def write_line(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Append a line to metrics.jsonl, only in the process that writes."""
    if trainer.metrics is None:
        return
    trainer.folder.check_owned()
    epoch = round(trainer.step / trainer.steps_per_epoch, 4)
    trainer.metrics.write({"step": trainer.step, "epoch": epoch, "time": time.time(), **metrics})
