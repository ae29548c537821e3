"""One optimisation step: forward, backward, clipping, the optimiser, and what follows the weights.

Nothing here waits for the device: a step whose gradient is not finite is skipped by the optimiser
on the device itself, and counted there.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densevit.config import RunConfig
from densevit.contrast.draws import PartDraws
from densevit.data.loading import Batch
from densevit.data.views import derived_seed
from densevit.distributed import World, summed
from densevit.objective import (
    Learner,
    Losses,
    Mark,
    build_optimizer,
    clipped_parameters,
    follow,
    mix,
    true_places,
)

DRAWS, GLOBAL, MIXUP = 3, 4, 5  # random streams; see data.loading for the others
DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Engine:
    """The moving parts of a step.

    `trained` is the learner, or DistributedDataParallel around it. `skipped` counts steps whose
    gradient was not finite, `in_a_row` those without one between, `most_in_a_row` their maximum;
    all on the device.
    """

    config: RunConfig
    world: World
    device: torch.device
    learner: Learner
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    skipped: Tensor
    in_a_row: Tensor
    most_in_a_row: Tensor

    def weights(self) -> dict[str, Any]:
        """The large part of `state`, which no device is asked for."""
        learner = self.learner
        parts = {"model": learner.model, "contrast": learner.contrast, "averaged": learner.averaged}
        return {
            **{name: part.state_dict() for name, part in parts.items() if part is not None},
            "optimizer": self.optimizer.state_dict(),
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            **self.weights(),
            "scaler": self.scaler.state_dict(),
            "skipped": [self.skipped, self.in_a_row, self.most_in_a_row],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        for name in ("model", "contrast", "averaged"):
            part = getattr(self.learner, name)
            if part is not None:
                part.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        counters = (counter.to(self.device) for counter in state["skipped"])
        self.skipped, self.in_a_row, self.most_in_a_row = counters


def build_engine(learner: Learner, device: torch.device, world: World) -> Engine:
    """The engine of a learner whose weights are on the device, the same on every process."""
    config = learner.config
    trained: nn.Module = learner
    if world.ranks > 1:
        trained = nn.parallel.DistributedDataParallel(
            learner,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # the queues are kept equal by what enters them
            gradient_as_bucket_view=True,
        )
    if config.compile:
        learner.model.compile()
        if learner.averaged is not None:
            learner.averaged.compile()
    # Without fp16 the scale stays 1, and what is left is the skipping of steps.
    scale = 2.0**16 if config.precision == "fp16" else 1.0
    scaler = torch.amp.GradScaler(device.type, init_scale=scale)
    counters = (torch.zeros((), device=device) for _ in range(3))
    return Engine(
        config, world, device, learner, trained, build_optimizer(learner), scaler, *counters
    )


def train_step(
    engine: Engine, batch: Batch, weight: float, step: int, mark: Mark = lambda _: None
) -> dict[str, Tensor]:
    """Train on this process's part of a batch, with λ = `weight`; numbers stay on the device.

    All that is drawn is a function of (seed, step), whatever was drawn before.
    """
    config, learner = engine.config, engine.learner
    _seed(config, step, engine.world)
    share = mixup_share(config, step)
    parts = batch.split(len(batch.ids) // config.grad_accumulation)
    matched = _matched_a_part(engine, parts, step)
    done = []
    engine.optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        mark("forward")
        # Gradients are exchanged once, with the last part.
        with nullcontext() if last or engine.world.ranks == 1 else engine.trained.no_sync():
            with autocast(engine):
                losses = engine.trained(
                    mix(part, share), weight, part_draws(engine, step, number),
                    matched=matched, mixed=share, mark=mark,
                )  # fmt: skip
            mark("backward")
            engine.scaler.scale(_descended(learner, losses) / len(parts)).backward()
        done.append(losses)
    mark("optimizer")
    norm = _update(engine)
    if learner.contrast is not None:
        learner.contrast.enqueue([losses.keys for losses in done])
    return _numbers(engine, done, norm)


def autocast(engine: Engine) -> torch.autocast:
    """The precision that a run's products have."""
    dtype = DTYPES[engine.config.precision]
    return torch.autocast(engine.device.type, dtype, enabled=dtype is not None)


def part_draws(engine: Engine, step: int, number: int) -> PartDraws:
    """What part `number` of this process's part of a step's batch draws from."""
    config, world = engine.config, engine.world
    size = config.batch_size // (world.ranks * config.grad_accumulation)
    generator = torch.Generator(engine.device)
    generator.manual_seed(derived_seed(DRAWS, config.seed, step))
    first = (world.rank * config.grad_accumulation + number) * size
    return PartDraws(generator, first, config.batch_size)


def mixup_share(config: RunConfig, step: int) -> float:
    """How much of its own a picture keeps; 1 without mixup."""
    if config.mixup == 0:
        return 1.0
    generator = np.random.default_rng(derived_seed(MIXUP, config.seed, step))
    return float(generator.beta(config.mixup, config.mixup))


def _seed(config: RunConfig, step: int, world: World) -> None:
    """For what draws from torch's global state (drop path), on each process its own."""
    torch.manual_seed(derived_seed(GLOBAL, config.seed, step, world.rank))


def _descended(learner: Learner, losses: Losses) -> Tensor:
    """What the gradient is of: a linear probe descends beside the rest."""
    return losses.total + losses.classification if learner.model.probe else losses.total


def _matched_a_part(engine: Engine, parts: list[Batch], step: int) -> Tensor | None:
    """The mean number of matched queries of all parts, where it differs between parts."""
    learner, count = engine.learner, len(parts) * engine.world.ranks
    dense = learner.contrast is not None and "dense" in learner.contrast.weights
    if not dense or count == 1 or engine.config.correspondence_features != "geometry":
        return None
    total = torch.zeros((), device=engine.device)
    for number, part in enumerate(parts):
        draws = part_draws(engine, step, number)  # as the part itself will draw
        total += learner.contrast.count_matched(true_places(learner, part), draws)
    return summed(total, engine.world).clamp_min(1) / count


def _update(engine: Engine) -> Tensor:
    """Clip, step, and let the moving average follow; returns the norm of the gradient."""
    learner, config = engine.learner, engine.config
    engine.scaler.unscale_(engine.optimizer)
    gradients = [p.grad for p in clipped_parameters(learner.model) if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if config.grad_clip > 0:
        nn.utils.clip_grads_with_norm_(clipped_parameters(learner.model), config.grad_clip, norm)
    engine.scaler.step(engine.optimizer)
    engine.scaler.update(None if config.precision == "fp16" else 1.0)
    if learner.contrast is not None:
        learner.contrast.clamp_temperature()
    follow(learner)
    return norm


def _numbers(engine: Engine, done: list[Losses], norm: Tensor) -> dict[str, Tensor]:
    """Means over the parts, 0 in a skipped step; `counted` is 1 in the others."""
    first = done[0]
    columns = {"loss": [d.total for d in done]}
    columns["classification_loss"] = [d.classification for d in done]
    columns["top1"] = [100 * d.top1 for d in done]
    if first.contrastive is not None:
        columns["contrastive_loss"] = [d.contrastive for d in done]
    if len(first.parts) > 1:
        for kind in first.parts:
            columns[f"{kind}_loss"] = [d.parts[kind] for d in done]
    names = [*columns, "counted"]
    values = torch.stack([torch.stack(column).detach().mean() for column in columns.values()])
    finite = norm.isfinite() & values[0].isfinite()
    engine.skipped = engine.skipped + ~finite
    engine.in_a_row = torch.where(finite, 0, engine.in_a_row + 1)
    engine.most_in_a_row = torch.maximum(engine.most_in_a_row, engine.in_a_row)
    values = torch.where(finite, torch.cat([values, values.new_ones(1)]), 0)
    return dict(zip(names, values.unbind(), strict=True))
