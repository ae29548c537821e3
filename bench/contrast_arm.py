"""One arm of contrast_step.py: its network, its steps, their time and memory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from harness import machine
from torch import Tensor
from torch.nn import functional as F

from densevit.config.run_config import RunConfig
from densevit.contrast import loss
from densevit.data.batch import Batch
from densevit.models.backbone import check_model
from densevit.train.learner import build_learner
from densevit.train.step import build_engine, train_step
from densevit.train.timing import peak_memory_mib
from densevit.utils.distributed import World
from densevit.utils.errors import UserError

CLASSES = 1000


def serve(pipe: Connection, config: RunConfig, options: argparse.Namespace, *, plain: bool) -> None:
    """Send the machine's description, then run as many steps as requested; 0 requests the memory.

    Errors: `EOFError` or `OSError` when the requester is gone; `UserError`.
    """
    size = check_model(config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: cuda: torch sees no GPU here")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    if plain:
        loss.queue_info_nce = plain_info_nce
    step = stepper(config, size, device, options.repeat_pictures)
    before = peak_memory_mib(device)
    pipe.send(machine(device.type))
    while True:
        steps = pipe.recv()
        if steps:
            pipe.send(timed(step, steps, device))
        else:
            pipe.send({"before_mib": before, "peak_mib": peak_memory_mib(device)})


def stepper(config: RunConfig, size: int, device: torch.device, repeat: bool) -> Callable[[], None]:
    """Return a function that trains one step on images of `size` pixels.

    Each step has new image ids, as in an epoch of a large data set; with `repeat` the same ones.
    The pixels stay the same.
    """
    torch.manual_seed(0)
    learner = build_learner(config, CLASSES, device)
    learner.train()
    engine = build_engine(learner, device, World())
    batch = random_batch(config.batch_size, size).to(device)
    number = 0

    def step() -> None:
        nonlocal number
        train_step(engine, batch, config.lambda_weight, number)
        number += 1
        if not repeat:
            batch.ids.add_(config.batch_size)

    return step


def timed(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Return the seconds of `steps` steps, after one untimed step.

    Between turns, the other processes use the caches and free memory. The first step of a turn pays
    for that, and the more so the more memory it takes.
    """
    on_gpu = device.type == "cuda"
    step()
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if on_gpu:
        torch.cuda.empty_cache()  # for the other processes
    return seconds


def random_batch(count: int, size: int) -> Batch:
    """Return noise in two views, with whole images as crops."""
    views = torch.randn(2, count, 3, size, size)
    place = torch.tensor([0.0, 0.0, size, size]).repeat(count, 1)
    return Batch(*views, place, place, torch.randint(CLASSES, (count,)), torch.arange(count))


def plain_info_nce(
    queries: Tensor,
    positives: Tensor,
    queue: Tensor,
    temperature: float | Tensor,
    *,
    exclude: Tensor | None = None,
) -> Tensor:
    """Compute `queue_info_nce` as it is usually written: all logits at once, gradient by autograd.

    The queue is cloned because it changes before the backward pass. As in `queue_info_nce`, nothing
    is masked if nothing is excluded.
    """
    positive = (queries * positives).sum(dim=1, keepdim=True)  # (M, 1)
    negative = queries @ queue.clone().T  # (M, K)
    if exclude is not None and exclude.any():
        rows = exclude.repeat_interleave(len(queries) // len(exclude), dim=0)  # (G, K) -> (M, K)
        negative = negative.masked_fill(rows, -torch.inf)
    logits = torch.cat([positive, negative], dim=1) / temperature
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, target, reduction="none")
