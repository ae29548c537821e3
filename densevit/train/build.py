"""Construction of a trainer from a run's config."""

from __future__ import annotations

import torch

from densevit.config.identity import identity
from densevit.config.run_config import RunConfig
from densevit.data.datasets import Data
from densevit.data.loaders import BatchOrder, probe_crops, training_batches
from densevit.runs import checkpoint
from densevit.runs.directory import RunFolder
from densevit.train.checkpointing import resume
from densevit.train.feature_health import HEALTH_IMAGES
from densevit.train.initial_weights import load_initial
from densevit.train.learner import build_learner
from densevit.train.step import build_engine
from densevit.train.timing import PhaseTimer
from densevit.train.trainer import StopSignal, Trainer
from densevit.utils.distributed import World
from densevit.utils.threads import threads
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from timm.scheduler.cosine_lr import CosineLRScheduler  # noqa: E402


def build_trainer(
    config: RunConfig, folder: RunFolder, data: Data, stop_signal: StopSignal, world: World
) -> Trainer:
    """Build a run's trainer from its newest checkpoint, else in its initial state."""
    device = _device(config, world)
    torch.set_num_threads(threads(config.threads))
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
    preprocessing = model.preprocessing()
    crops = probe_crops(data.shown, model.image_size, HEALTH_IMAGES)
    health_batch = crops.developed(preprocessing["mean"], preprocessing["std"])
    trainer = Trainer(
        config, folder, engine, scheduler, batches, order, data.train.classes, health_batch,
        stop_signal, checkpoint.Checkpoints(folder.checkpoint_folder), PhaseTimer(device),
    )  # fmt: skip
    progress = folder.progress()
    trainer.started = progress.get("started", trainer.started)
    trainer.earlier_seconds, trainer.top1 = progress.get("spent", 0.0), progress.get("top1")
    resume(trainer, state)
    return trainer


def on_gpu(config: RunConfig) -> bool:
    return config.device != "cpu" and torch.cuda.is_available()


def _device(config: RunConfig, world: World) -> torch.device:
    if not on_gpu(config):
        return torch.device("cpu")
    # A launcher may show each process its own GPU, or show all GPUs to each.
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
