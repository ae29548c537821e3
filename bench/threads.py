"""Measure two runs on this machine's processors, with different threads and ways to wait.

    python bench/threads.py [--runs N] [--seconds S] [--rounds N] [--json FILE]

Two processes train the network of the quickstart at the same time on crops in memory: with one
thread each, with two threads each that wait as OpenMP does by default (they spin), and with two
threads each that wait passively. Each is measured alone and beside a third process that is always
busy. Images per second of both runs together; ratios are of the same round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from harness import markdown, quartiles, selected, write_record

NETWORK = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
BATCH = 32
SPAWN = multiprocessing.get_context("spawn")  # OpenMP reads its variables when it is loaded
ARMS = {
    "1 thread": (1, "passive"),
    "2 threads, spinning": (2, None),
    "2 threads, passive": (2, "passive"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("threads.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--runs", type=int, default=2, help="at the same time (%(default)s)")
    add("--only", help="some of the arms, separated by commas")
    add("--seconds", type=float, default=5.0, help="of a measurement (%(default)s)")
    add("--rounds", type=int, default=3, help="(%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    arms = selected(options.only, ARMS) if options.only else list(ARMS)
    rates: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for beside in (0, 1):
            for arm in arms:
                name = arm + ", beside a busy process" * beside
                rates.setdefault(name, []).append(measured(arm, beside, options))
    reference = rates[arms[0]]
    rows = []
    for name, values in rates.items():
        low, middle, high = quartiles([v / r for v, r in zip(values, reference, strict=True)])
        ratio = f"{middle:.2f} ({low:.2f}–{high:.2f})"
        rows.append([name, f"{statistics.median(values):.0f}", ratio])
    print(markdown(["", "images/s", f"ratio to {arms[0]}, alone"], rows))
    if options.json:
        write_record(options.json, "threads.py", given, images_per_second=rates)
    return 0


def measured(arm: str, beside: int, options: argparse.Namespace) -> float:
    """Return the images per second of all runs together."""
    threads, policy = ARMS[arm]
    ready, results = SPAWN.Barrier(options.runs + 1), SPAWN.Queue()
    with environment(threads, policy):
        runs = [
            SPAWN.Process(target=train, args=(threads, options.seconds, ready, results))
            for _ in range(options.runs)
        ]
        busy = [SPAWN.Process(target=spin, daemon=True) for _ in range(beside)]
        for process in [*runs, *busy]:
            process.start()
    ready.wait()
    images = sum(results.get() for _ in runs)
    for process in busy:
        process.kill()
    for process in [*runs, *busy]:
        process.join()
    return float(images / options.seconds)


@contextmanager
def environment(threads: int, policy: str | None) -> Iterator[None]:
    """Set what OpenMP reads in the processes that are started within."""
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.pop("OMP_WAIT_POLICY", None)
    if policy:
        os.environ["OMP_WAIT_POLICY"] = policy
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def train(threads: int, seconds: float, ready: Barrier, results: Any) -> None:
    """Train for some seconds once all others are ready; put the number of images into the queue."""
    import train_loop

    settings = argparse.Namespace(
        model="vit_tiny_patch16_224", model_kwargs=NETWORK, batch=BATCH, cl_mode="dense",
        device="cpu", precision="float32", threads=threads, steps=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = train_loop.make_trainer(settings, Path(folder))
        step = trainer.batches
        train_loop.loop._train_epoch(trainer, lambda *_: None)  # the first step allocates
        ready.wait()
        images, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            trainer.batches = step
            train_loop.loop._train_epoch(trainer, lambda *_: None)
            images += BATCH
        trainer.checkpoints.finish()
    results.put(images)


def spin() -> None:
    """Keep a processor busy."""
    while True:
        pass


if __name__ == "__main__":
    raise SystemExit(main())
