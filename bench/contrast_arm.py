"""One arm of contrast_step.py: its network, its steps, and what they take."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from densevit.config import RunConfig
from densevit.contrast import losses
from densevit.data.loading import Batch
from densevit.distributed import World
from densevit.errors import UserError
from densevit.meter import peak_memory_mib
from densevit.model import check_model
from densevit.objective import build_learner
from densevit.step import build_engine, train_step

CLASSES = 1000


def serve(pipe: Connection, config: RunConfig, options: argparse.Namespace, *, plain: bool) -> None:
    """Tell the machine, then do as many steps as is asked for; 0 asks for the memory.

    Errors: `EOFError` or `OSError` when nobody asks any more; `UserError`.
    """
    size = check_model(config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: cuda: torch sees no GPU here")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    if plain:
        losses.queue_info_nce = plain_info_nce
    step = stepper(config, size, device, options.repeat_pictures)
    before = peak_memory_mib(device)
    pipe.send(machine(device))
    while True:
        steps = pipe.recv()
        if steps:
            pipe.send(timed(step, steps, device))
        else:
            pipe.send({"before_mib": before, "peak_mib": peak_memory_mib(device)})


def stepper(config: RunConfig, size: int, device: torch.device, repeat: bool) -> Callable[[], None]:
    """A call that trains one step, on pictures of `size` pixels.

    Each step is of new pictures by their ids, as in an epoch of a large data set; with `repeat` of
    the same ones. The pixels stay what they were.
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
    """Seconds that some steps take, after one that is not counted.

    The other processes have had the caches meanwhile, and memory that was free: the first step of
    a turn pays for that, and more so the more memory it takes.
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
        torch.cuda.empty_cache()  # the others need it
    return seconds


def random_batch(count: int, size: int) -> Batch:
    """Noise in two views, with whole pictures as places."""
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
    """`queue_info_nce` as it is usually written: all logits at once, and autograd does the rest.

    The queue is cloned because it changes before the backward pass. Nothing is masked where there
    is nothing to exclude, as in `queue_info_nce`.
    """
    positive = (queries * positives).sum(dim=1, keepdim=True)  # (M, 1)
    negative = queries @ queue.clone().T  # (M, K)
    if exclude is not None and exclude.any():
        rows = exclude.repeat_interleave(len(queries) // len(exclude), dim=0)  # (G, K) -> (M, K)
        negative = negative.masked_fill(rows, -torch.inf)
    logits = torch.cat([positive, negative], dim=1) / temperature
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, target, reduction="none")


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
