"""The moving parts of a run: how they are made, kept in a checkpoint, and continued from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from densevit import checkpoint
from densevit.checkup import PROBE_PICTURES
from densevit.config import RunConfig, identity
from densevit.data.loading import Batch, BatchOrder, Crops, probe_crops, training_batches
from densevit.data.sources import Data
from densevit.distributed import World, gathered
from densevit.errors import UserError
from densevit.gauges import Gauges
from densevit.initial import load_initial
from densevit.meter import Clock, Tally
from densevit.metricsfile import MetricsFile
from densevit.objective import build_learner, contrastive_weight
from densevit.rundir import RunFolder, read_json
from densevit.step import Engine, build_engine
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

from timm.scheduler import CosineLRScheduler  # noqa: E402

log = logging.getLogger("densevit")

Asked = Callable[[], int]  # the signal that asked the run to stop, 0 if none did


@dataclass
class Trainer:
    """The moving parts of a run; `step` steps are done, `seconds` were spent on them."""

    config: RunConfig
    folder: RunFolder
    engine: Engine
    scheduler: CosineLRScheduler
    batches: Iterable[Crops]
    order: BatchOrder
    classes: tuple[str, ...]
    probe: Batch
    asked: Asked
    checkpoints: checkpoint.Checkpoints
    clock: Clock
    metrics: MetricsFile | None = None  # of the process that writes
    gauges: Gauges | None = None  # likewise, while it trains
    tally: Tally = field(default_factory=Tally)
    step: int = 0
    validated: int = 0  # epochs
    seconds: float = 0.0
    collapsed: bool = False  # at the last look
    started: float = field(default_factory=time.time)
    spent: float = 0.0  # seconds of the starts before this one
    speed: float = 0.0  # images a second, at the last logged line
    top1: float | None = None  # on val, the last one
    saved: tuple[int, float] = (-1, 0.0)  # the step of the last checkpoint, and when
    timed: int = 0  # steps since the clock was read
    mentioned: int = 0  # skipped steps
    told: float = 0.0

    @property
    def world(self) -> World:
        return self.engine.world

    @property
    def steps_per_epoch(self) -> int:
        return len(self.order)

    @property
    def epoch(self) -> int:
        """Whole epochs that are done."""
        return self.step // self.steps_per_epoch

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def weight(self) -> float:
        """λ of the step that comes next."""
        return contrastive_weight(self.config, self.step / max(self.steps, 1))


def build_trainer(
    config: RunConfig, folder: RunFolder, data: Data, asked: Asked, world: World
) -> Trainer:
    """The trainer of a run as its newest checkpoint left it, else at its start."""
    device = _device(config, world)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    state = checkpoint.load(folder.checkpoint_folder, identity(config).run)
    torch.manual_seed(config.seed)
    learner = build_learner(config, len(data.train.classes), device, pretrained=state is None)
    if state is None and config.init_checkpoint:
        load_initial(learner, config.init_checkpoint)
    model = learner.model
    order = BatchOrder(
        len(data.train), config.batch_size, config.seed, rank=world.rank, ranks=world.ranks
    )
    batches = training_batches(
        data.train, model.image_size, order, workers=config.workers, pin=device.type == "cuda"
    )
    engine = build_engine(learner, device, world)
    scheduler = CosineLRScheduler(
        engine.optimizer,
        t_initial=(config.epochs - config.warmup_epochs) * len(order),
        warmup_t=config.warmup_epochs * len(order),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    wanted = model.pictures()
    look = wanted["mean"], wanted["std"]
    probe = probe_crops(data.val, model.image_size, PROBE_PICTURES).developed(*look)
    trainer = Trainer(
        config, folder, engine, scheduler, batches, order, data.train.classes, probe, asked,
        checkpoint.Checkpoints(folder.checkpoint_folder), Clock(device),
    )  # fmt: skip
    held = folder.progress()
    trainer.started = held.get("started", trainer.started)
    trainer.spent, trainer.top1 = held.get("spent", 0.0), held.get("top1")
    _resume(trainer, state)
    return trainer


def looks(engine: Engine) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,) of the pictures that the network wants, on its device."""
    wanted = engine.learner.model.pictures()
    mean, std = (torch.tensor(wanted[key], device=engine.device) for key in ("mean", "std"))
    return mean, std


def write_line(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Add a line to metrics.jsonl, by the process that writes."""
    if trainer.metrics is None:
        return
    epoch = round(trainer.step / trainer.steps_per_epoch, 4)
    trainer.metrics.write({"step": trainer.step, "epoch": epoch, "time": time.time(), **metrics})


def save(trainer: Trainer) -> None:
    """A checkpoint of this step, with the position in metrics.jsonl that belongs to it.

    All processes call it at the same step: each has a part of what was counted since the last line.
    """
    if trainer.folder.results_file.exists():
        return  # nothing is trained any more
    tally = trainer.tally.sums
    values = gathered(torch.stack(list(tally.values())).cpu() if tally else None, trainer.world)
    trainer.saved = trainer.step, time.monotonic()
    if trainer.metrics is None or not trainer.metrics.flush():
        return
    state = {
        "run": identity(trainer.config).run,
        "step": trainer.step,
        "validated": trainer.validated,
        "seconds": trainer.seconds,
        "collapsed": trainer.collapsed,
        "metrics_bytes": trainer.metrics.length,
        "classes": list(trainer.classes),
        "tally": {"names": list(tally), "values": torch.stack(values) if tally else None},
        "scheduler": trainer.scheduler.state_dict(),
        **trainer.engine.state(),
    }
    trainer.checkpoints.save(state, trainer.step, trainer.metrics.sync)


def _resume(trainer: Trainer, state: dict[str, Any] | None) -> None:
    """Continue from a checkpoint, if any; metrics that were logged after it are cut off."""
    if state is not None:
        trainer.engine.load_state(state)
        trainer.scheduler.load_state_dict(state["scheduler"])
        trainer.step, trainer.validated = state["step"], state["validated"]
        trainer.seconds, trainer.collapsed = state["seconds"], state["collapsed"]
        trainer.mentioned = int(trainer.engine.skipped)
        held = state["tally"]
        if held["names"]:
            own = _own_share(held["values"], trainer.world).to(trainer.engine.device)
            trainer.tally = Tally(dict(zip(held["names"], own.unbind(), strict=True)))
        log.info("continuing after step %d of %d", trainer.step, trainer.steps)
    trainer.saved = trainer.step if state else -1, time.monotonic()
    folder = trainer.folder
    if state is None and folder.results_file.exists():  # only a benchmark is missing
        raise UserError(
            f"{folder.path}: its checkpoint is gone, so that nothing more can be evaluated; "
            f"remove the folder to train the run again"
        )
    if not trainer.world.writes:
        return
    kept = state["metrics_bytes"] if state is not None else 0
    # Lines of the evaluation follow those that the checkpoint counts.
    kept = (read_json(folder.results_file) or {}).get("metrics_bytes", kept)
    checkpoint.remove_leftovers(folder.checkpoint_folder)
    trainer.metrics = MetricsFile(folder.metrics_file, kept)


def _own_share(sums: Tensor, world: World) -> Tensor:
    """A process's row of what was counted.

    With another number of processes than before, the first has it all, as if those of now had
    counted it: a step counts once for each of them.
    """
    if len(sums) == world.ranks:
        return sums[world.rank]
    whole = sums.sum(dim=0) * (world.ranks / len(sums))
    return whole if world.rank == 0 else torch.zeros_like(whole)


def on_gpu(config: RunConfig) -> bool:
    return config.device != "cpu" and torch.cuda.is_available()


def _device(config: RunConfig, world: World) -> torch.device:
    if not on_gpu(config):
        return torch.device("cpu")
    # A launcher may show each process a GPU of its own, or all of them to each.
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
