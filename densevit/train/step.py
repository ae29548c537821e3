"""One training step: forward, backward, gradient clipping, optimizer, moving average, queues.

Nothing here waits for the device: a step whose gradient is not finite is skipped by the optimizer
on the device and counted there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densevit.config.run_config import RunConfig
from densevit.contrast.random_draws import PartDraws
from densevit.data.batch import Batch
from densevit.data.random_streams import DRAWS, GLOBAL, derived_seed
from densevit.train.learner import Learner, Losses, Mark, true_matches, update_average
from densevit.train.mixup import mix, mixup_share
from densevit.train.optimizer import build_optimizer, clipped_parameters
from densevit.utils.cache import use_own_compile_cache
from densevit.utils.distributed import World, all_reduce_sum

DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Engine:
    """The state of the training step.

    `trained` is the learner, or DistributedDataParallel around it. `skipped` counts steps whose
    gradient was not finite, `in_a_row` consecutive ones, `most_in_a_row` the maximum of that; all
    on the device.
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
        """Return the large part of `state`, without waiting for the device."""
        learner = self.learner
        parts = {"model": learner.model, "contrast": learner.contrast, "averaged": learner.averaged}
        return {
            **{name: part.state_dict() for name, part in parts.items() if part is not None},
            "optimizer": self.optimizer.state_dict(),
        }

    def state(self) -> dict[str, Any]:
        """Return the state dict for a checkpoint."""
        return {
            **self.weights(),
            "scaler": self.scaler.state_dict(),
            "skipped": [self.skipped, self.in_a_row, self.most_in_a_row],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `state` returned."""
        for name in ("model", "contrast", "averaged"):
            part = getattr(self.learner, name)
            if part is not None:
                part.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        counters = (counter.to(self.device) for counter in state["skipped"])
        self.skipped, self.in_a_row, self.most_in_a_row = counters


def build_engine(learner: Learner, device: torch.device, world: World) -> Engine:
    """Build the engine of a learner whose weights are on the device, equal in all processes."""
    config = learner.config
    trained: nn.Module = learner
    if world.ranks > 1:
        trained = DistributedDataParallel(
            learner,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # the queues stay equal: all ranks enqueue the same keys
            gradient_as_bucket_view=True,
        )
    if config.compile:
        use_own_compile_cache()
        learner.model.compile()
        if learner.averaged is not None:
            learner.averaged.compile()
    # Without fp16 the scale stays 1, and the scaler only skips steps.
    scale = 2.0**16 if config.precision == "fp16" else 1.0
    scaler = torch.amp.GradScaler(device.type, init_scale=scale)
    counters = (torch.zeros((), device=device) for _ in range(3))
    return Engine(
        config, world, device, learner, trained, build_optimizer(learner), scaler, *counters
    )


def train_step(
    engine: Engine, batch: Batch, weight: float, step: int, mark: Mark = lambda _: None
) -> dict[str, Tensor]:
    """Train on this process's part of a batch, with λ = `weight`; return metrics on the device.

    All random numbers are a function of (seed, step) and of no earlier draws.
    """
    config, learner = engine.config, engine.learner
    _seed(config, step, engine.world)
    share = mixup_share(config, step)
    parts = batch.split(len(batch.ids) // config.grad_accumulation)
    matched = _matched_a_part(engine, parts, step)
    done = []
    engine.optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(parts):
        mark("forward")
        last = number == len(parts) - 1
        with nullcontext() if last else _no_sync(engine.trained):
            with autocast(engine):
                losses = engine.trained(
                    mix(part, share), weight, part_draws(engine, step, number),
                    matched=matched, mixed=share, mark=mark,
                )  # fmt: skip
            mark("backward")
            torch.autograd.backward(engine.scaler.scale(_objective(learner, losses) / len(parts)))
        done.append(losses)
    mark("optimizer")
    norm = _update(engine)
    if learner.contrast is not None:
        learner.contrast.enqueue([losses.keys for losses in done])
    return _metrics(engine, done, norm)


def autocast(engine: Engine) -> torch.autocast:
    """Return the autocast context of a run's precision."""
    dtype = DTYPES[engine.config.precision]
    return torch.autocast(engine.device.type, dtype, enabled=dtype is not None)


def part_draws(engine: Engine, step: int, number: int) -> PartDraws:
    """Return the random draws for part `number` of this process's share of a batch."""
    config, world = engine.config, engine.world
    size = config.batch_size // (world.ranks * config.grad_accumulation)
    generator = torch.Generator(engine.device)
    generator.manual_seed(derived_seed(DRAWS, config.seed, step))
    first = (world.rank * config.grad_accumulation + number) * size
    return PartDraws(generator, first, config.batch_size)


def _seed(config: RunConfig, step: int, world: World) -> None:
    """Seed torch's global generator (used by drop path), differently in each process."""
    torch.manual_seed(derived_seed(GLOBAL, config.seed, step, world.rank))


def _no_sync(trained: nn.Module) -> AbstractContextManager[None]:
    """Return a context that leaves the exchange of gradients to the last part of a batch."""
    return trained.no_sync() if isinstance(trained, DistributedDataParallel) else nullcontext()


def _objective(learner: Learner, losses: Losses) -> Tensor:
    """Return the loss to differentiate; a linear probe adds its own loss to the total."""
    return losses.total + losses.classification if learner.model.linear_probe else losses.total


def _matched_a_part(engine: Engine, parts: list[Batch], step: int) -> dict[str, Tensor] | None:
    """Return the mean number of matched queries per part, by kind of loss that uses true matches.

    None if there is only one part, which counts them itself.
    """
    learner, count = engine.learner, len(parts) * engine.world.ranks
    if learner.contrast is None or count == 1:
        return None
    totals: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        matches = true_matches(learner, part)
        if matches is None:
            return None
        draws = part_draws(engine, step, number)  # the same as in `forward`
        for kind, matched in learner.contrast.count_matched(matches, draws).items():
            totals[kind] = totals.get(kind, 0) + matched
    return {
        kind: all_reduce_sum(total, engine.world).clamp_min(1) / count
        for kind, total in totals.items()
    }


def _update(engine: Engine) -> Tensor:
    """Clip the gradient, step, and update the moving average; return the gradient norm."""
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
    update_average(learner)
    return norm


def _metrics(engine: Engine, done: list[Losses], norm: Tensor) -> dict[str, Tensor]:
    """Return means over the parts, all 0 in a skipped step; `counted` is 1 in other steps."""
    columns = {"loss": [d.total for d in done]}
    if not engine.config.unlabelled:
        columns["classification_loss"] = [d.classification for d in done]
        columns["top1"] = [100 * d.top1 for d in done]
    contrastive = [d.contrastive for d in done if d.contrastive is not None]
    if contrastive:
        columns["contrastive_loss"] = contrastive
    if len(done[0].parts) > 1:
        for kind in done[0].parts:
            columns[f"{kind}_loss"] = [d.parts[kind] for d in done]
    columns["gradient_norm"] = [norm]  # before clipping
    if engine.config.grad_clip > 0:
        columns["clipped_share"] = [(norm > engine.config.grad_clip).float()]
    names = [*columns, "counted"]
    values = torch.stack([torch.stack(column).detach().mean() for column in columns.values()])
    finite = norm.isfinite() & values[0].isfinite()
    engine.skipped = engine.skipped + ~finite
    engine.in_a_row = torch.where(finite, 0, engine.in_a_row + 1)
    engine.most_in_a_row = torch.maximum(engine.most_in_a_row, engine.in_a_row)
    values = torch.where(finite, torch.cat([values, values.new_ones(1)]), 0)
    return dict(zip(names, values.unbind(), strict=True))
