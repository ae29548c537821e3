"""Checkpoints of a trainer: save its state and resume from it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from densevit.config.identity import identity
from densevit.runs import checkpoint
from densevit.runs.metrics_file import MetricsFile
from densevit.train.timing import MetricSums
from densevit.train.trainer import Trainer, log
from densevit.utils.distributed import World, all_gather
from densevit.utils.errors import UserError


def save(trainer: Trainer) -> None:
    """Write a checkpoint of this step, with its position in metrics.jsonl.

    All processes call it at the same step: each holds part of the sums since the last logged line.
    """
    if trainer.folder.results_file.exists():
        return  # training is over
    sums = trainer.sums.values
    values = all_gather(torch.stack(list(sums.values())).cpu() if sums else None, trainer.world)
    trainer.saved = trainer.step, time.monotonic()
    if trainer.metrics is None:
        return
    trainer.folder.check_owned()
    if not trainer.metrics.flush():
        return
    state = {
        "run": identity(trainer.config).run,
        "step": trainer.step,
        "validated": trainer.validated_epoch,
        "seconds": trainer.seconds,
        "collapsed": trainer.collapsed,
        "metrics_bytes": trainer.metrics.length,
        "classes": list(trainer.classes),
        "tally": {"names": list(sums), "values": torch.stack(values) if sums else None},
        "scheduler": trainer.scheduler.state_dict(),
        **trainer.engine.state(),
    }
    trainer.checkpoints.save(state, trainer.step, trainer.metrics.sync)


def resume(trainer: Trainer, state: dict[str, Any] | None) -> None:
    """Resume from a checkpoint, if any; metrics logged after it are removed."""
    if state is not None:
        trainer.engine.load_state(state)
        trainer.scheduler.load_state_dict(state["scheduler"])
        trainer.step, trainer.validated_epoch = state["step"], state["validated"]
        trainer.seconds, trainer.collapsed = state["seconds"], state["collapsed"]
        trainer.logged_skips = int(trainer.engine.skipped)
        names, values = state["tally"]["names"], state["tally"]["values"]
        if names:
            own = _own_share(values, trainer.world).to(trainer.engine.device)
            trainer.sums = MetricSums(dict(zip(names, own.unbind(), strict=True)))
        log.info("continuing after step %d of %d", trainer.step, trainer.steps)
    trainer.saved = trainer.step if state else -1, time.monotonic()
    folder = trainer.folder
    if state is None and folder.results_file.exists():  # only a benchmark is missing
        raise UserError(
            f"{folder.path}: the checkpoint is gone, so nothing more can be evaluated; remove the "
            f"folder to train the run again"
        )
    if not trainer.world.writes:
        return
    length = state["metrics_bytes"] if state is not None else 0
    # Evaluation lines come after those counted in the checkpoint.
    results = folder.results()
    length = length if results is None else results.get("metrics_bytes", length)
    checkpoint.remove_leftovers(folder.checkpoint_folder)
    trainer.metrics = MetricsFile(folder.metrics_file, length)


def _own_share(sums: Tensor, world: World) -> Tensor:
    """Return this process's row of the saved sums.

    If the number of processes has changed, the first process gets the total. It is scaled to the
    new number, since a step counts once per process.
    """
    if len(sums) == world.ranks:
        return sums[world.rank]
    whole = sums.sum(dim=0) * (world.ranks / len(sums))
    return whole if world.rank == 0 else torch.zeros_like(whole)
