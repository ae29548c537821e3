"""Measure the trainer's loop against a bare loop, and a checkpoint against a step.

    python bench/train_loop.py [--model NAME] [--batch N] [--cl-mode MODE] [--json FILE]

Both loops train the same network with the same losses and optimizer on the same crops in memory.
The bare loop is what one would write in a notebook: colors, forward, losses, backward, clipping,
optimizer and queue. The trainer adds signals, checkpoint intervals, skipping of non-finite steps,
counting, timing, a logged line every 50 steps and status.json. They take turns of some steps each
in one process; ratios are of the same round.

With --checkpoint the table is of a checkpoint instead: how long `save` delays its step, how long
the writing takes, and how long a process that has imported everything needs until it is ready for
its next step.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from harness import markdown, write_record
from PIL import Image
from torch import nn

from densevit.config.resolve import Layer, build
from densevit.data.batch import Crops
from densevit.data.datasets import Data
from densevit.data.image import LazyImage
from densevit.models.backbone import check_model
from densevit.runs import checkpoint_files
from densevit.runs.directory import RunFolder
from densevit.train import loop
from densevit.train.build import build_trainer
from densevit.train.checkpointing import save
from densevit.train.step import autocast, part_draws
from densevit.train.trainer import Trainer, normalization
from densevit.utils.distributed import World
from densevit.utils.errors import EXIT_MISTAKE, UserError


class Noise:
    """Images that cost nothing to read."""

    classes = tuple(f"c{number}" for number in range(1000))

    def __init__(self, count: int, size: int) -> None:
        self.ids, self.labels = [str(n) for n in range(count)], [n % 1000 for n in range(count)]
        self.pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> LazyImage:
        return LazyImage(self.ids[index], Image.fromarray(self.pixels), self.pixels.shape[:2])


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("train_loop.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", default="vit_tiny_patch16_224", help="any ViT of timm (%(default)s)")
    add("--model-kwargs", type=json.loads, default={}, help="of the model, in JSON")
    add("--batch", type=int, default=8, help="images (%(default)s)")
    add("--cl-mode", default="dense", help="(%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--precision", default="float32", help="(%(default)s)")
    add("--threads", type=int, help="of torch on a CPU (all)")
    add("--rounds", type=int, default=7, help="(%(default)s)")
    add("--steps", type=int, default=10, help="of each loop a round (%(default)s)")
    add("--checkpoint", action="store_true", help="measure a checkpoint instead")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    logging.disable(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(options, Path(folder))
            found = (checkpoints if options.checkpoint else loops)(trainer, options)
    except UserError as error:
        print(f"train_loop.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    print(markdown(["", "median"], [[k, f"{statistics.median(v):.4g}"] for k, v in found.items()]))
    if options.json:
        device = trainer.engine.device.type
        write_record(options.json, "train_loop.py", given, device, numbers=found)
    return 0


def make_trainer(options: argparse.Namespace, folder: Path) -> Trainer:
    """Return a trainer on noise, whose epoch is longer than the measurement."""
    settings = {
        "model_name": options.model, "model_kwargs": options.model_kwargs,
        "batch_size": options.batch, "cl_mode": options.cl_mode, "device": options.device,
        "precision": options.precision, "workers": 0, "health_every": 10**9,
        "threads": options.threads or torch.get_num_threads(),
    }  # fmt: skip
    patches = options.model_kwargs.get("img_size", 224) // options.model_kwargs.get(
        "patch_size", 16
    )
    settings["sampled_patches"] = min(50, patches**2 // 2)
    config = build([Layer("command line", settings)])
    size = check_model(config)
    run = RunFolder(folder / "run")
    run.create(config)
    data = Data(Noise(10**5 * options.batch, size), Noise(8, size), {})
    trainer = build_trainer(config, run, data, lambda: 0, World())
    crops = next(iter(trainer.batches))
    trainer.batches = [crops] * options.steps
    trainer.engine.learner.train()
    return trainer


def loops(trainer: Trainer, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the milliseconds per step of both loops and their ratio, one number per round."""
    crops = next(iter(trainer.batches)).to(trainer.engine.device)
    optimizer = torch.optim.AdamW(trainer.engine.learner.model.parameters(), lr=1e-6, fused=True)
    found: dict[str, list[float]] = {"bare, ms": [], "trainer, ms": [], "trainer / bare": []}
    for number in range(options.rounds + 1):
        bare = timed(lambda: bare_loop(trainer, optimizer, crops, options.steps), trainer)
        ours = timed(lambda: loop._train_epoch(trainer, lambda *_: None), trainer)
        if number:
            found["bare, ms"].append(1000 * bare / options.steps)
            found["trainer, ms"].append(1000 * ours / options.steps)
            found["trainer / bare"].append(ours / bare)
    return found


def bare_loop(trainer: Trainer, optimizer: torch.optim.Optimizer, crops: Crops, steps: int) -> None:
    """Train the same in the shortest possible loop."""
    learner, config = trainer.engine.learner, trainer.config
    mean_std = normalization(trainer.engine)
    for step in range(steps):
        batch = crops.developed(*mean_std)
        with autocast(trainer.engine):
            losses = learner(batch, config.lambda_weight, part_draws(trainer.engine, step, 0))
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        nn.utils.clip_grad_norm_(learner.model.parameters(), config.grad_clip)
        optimizer.step()
        if learner.contrast is not None:
            learner.contrast.enqueue([losses.keys])


def timed(function: Callable[[], None], trainer: Trainer) -> float:
    on_gpu = trainer.engine.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def checkpoints(trainer: Trainer, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of `save`, of the writing after it, and of resuming, for each round."""
    loop._train_epoch(trainer, lambda *_: None)
    trainer.checkpoints.finish()
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(options.rounds):
        trainer.step += 1
        start = time.perf_counter()
        save(trainer)
        waited = time.perf_counter() - start
        trainer.checkpoints.finish()
        written = time.perf_counter() - start
        note("the step waits, s", waited)
        note("written after, s", written)
        note("waits / written", waited / written)
    file = checkpoint_files.newest_first(trainer.folder.checkpoint_folder)[0]
    note("size, MiB", file.stat().st_size / 2**20)
    for _ in range(options.rounds):
        start = time.perf_counter()
        again = make_trainer(options, trainer.folder.path.parent)
        assert again.step == trainer.step
        note("until its first step, s", time.perf_counter() - start)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
