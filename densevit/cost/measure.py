"""Measure the speed of runs on this machine: `python -m densevit.cost.measure IN.json OUT.json`.

IN is a list of `{"key", "config", "processes"}`: a name, all fields of a RunConfig, and the number
of processes that will train it (default 1). OUT maps each key to the result of `measured`. It is
rewritten after each probe, so that a killed process keeps the results so far.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.config.resolve import Layer, build
from densevit.config.run_config import RunConfig
from densevit.launch.machine import processor_name
from densevit.runs.directory import RunFolder
from densevit.utils.distributed import World
from densevit.utils.errors import EXIT_CARRY_ON, EXIT_MISTAKE, UserError, own_message
from densevit.utils.files import write_json

if TYPE_CHECKING:
    import torch

    from densevit.data.image import Images
    from densevit.data.test_set import TestSet
    from densevit.train.trainer import Trainer

# Steps to measure; a slow model needs only STEPS_LEAST once STEPS_SECONDS have passed.
STEPS, STEPS_LEAST, STEPS_SECONDS = 20, 3, 120.0
WARM_UP_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the probes that IN lists. Return the exit code, which is 0 even if a probe fails."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2:
        print("usage: python -m densevit.cost.measure IN.json OUT.json", file=sys.stderr)
        return EXIT_MISTAKE
    source, target = map(Path, given)
    requests = json.loads(source.read_text(encoding="utf-8"))
    done: dict[str, dict[str, Any]] = {}
    try:
        imports = _import_seconds()
        for number, item in enumerate(requests, start=1):
            print(f"measuring {number} of {len(requests)}", file=sys.stderr, flush=True)
            done[item["key"]] = measured(item["config"], item.get("processes", 1), imports)
            write_json(target, done)
    except KeyboardInterrupt:
        return EXIT_CARRY_ON
    return 0


def measured(settings: Mapping[str, Any], processes: int, imports: float) -> dict[str, Any]:
    """Return the measured times of a run in seconds, or `{"error": LINE}` if the run fails.

    device, on_gpu: the device that was measured.
    processes: the number of processes that the times hold for. On a GPU, one of the `processes` is
        measured with its part of the batch, without the exchange of gradients; on a CPU, 1: the
        whole batch.
    steps: of each measured step, from the end of the previous one: loading, augmentation,
        optimizer.
    startup: `imports`, opening the data, building, and the extra time of the first step.
    look: one measurement of feature health.
    evaluation, evaluated_picture: a set of n images takes `evaluation` + n · `evaluated_picture`.
    pictures: the number of images in train, val and each benchmark; not a time.
    """
    import torch

    try:
        return _measured(*_of_one_process(settings, processes), imports)
    except Exception as error:  # data, model or memory errors: the caller reports them
        return {"error": _one_line(error)}
    finally:
        gc.collect()  # stop the last probe's DataLoader workers, free its memory
        torch.cuda.empty_cache()  # does nothing where no GPU is in use
        if settings.get("compile"):
            torch.compiler.reset()  # else it stops compiling after too many recompilations


def _import_seconds() -> float:
    """Return the seconds that importing everything and initializing CUDA (if available) take."""
    begin = time.perf_counter()
    import torch

    import densevit.train.loop  # noqa: F401

    if torch.cuda.is_available():
        torch.cuda.synchronize()  # initializes CUDA
    return time.perf_counter() - begin


def _of_one_process(settings: Mapping[str, Any], processes: int) -> tuple[RunConfig, int]:
    """Return the config that one process trains here, and the number of processes.

    Initial weights are dropped: they may need a download, and do not change any measured time.
    """
    from densevit.train.build import on_gpu
    from densevit.train.preflight import check_batch_split, check_device

    unloaded = {**settings, "pretrained": False, "init_checkpoint": None, "init_sha256": None}
    config = build([Layer("probe", unloaded)])
    check_device(config)
    processes = processes if on_gpu(config) else 1
    check_batch_split(config, processes)
    return config.model_copy(update={"batch_size": config.batch_size // processes}), processes


def _measured(config: RunConfig, processes: int, imports: float) -> dict[str, Any]:
    from densevit.data.datasets import open_data
    from densevit.models.backbone import check_model
    from densevit.train.build import build_trainer

    begin = time.perf_counter()
    data = open_data(config, check_model(config))
    opened = time.perf_counter() - begin
    sets: dict[str, Images | TestSet] = {
        "train": data.train, **data.test_sets,
    }  # fmt: skip
    for images in sets.values():
        images.image(0)  # `shapes` is drawn at first use, once for all runs: not measured
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="densevit-probe-") as folder:
        trainer = build_trainer(config, RunFolder(Path(folder)), data, lambda: 0, World())
        steps = _steps(trainer)
        next(steps)
        built = time.perf_counter() - begin
        # Each DataLoader worker has prefetched two batches, which would look free.
        _next_steps(steps, 0, 2 + 2 * config.workers, WARM_UP_SECONDS)
        seconds_per_step = _next_steps(steps, STEPS_LEAST, STEPS, STEPS_SECONDS)
        evaluation, evaluated_picture = 0.0, 0.0
        if data.val is not None:
            evaluation, evaluated_picture = _evaluation(trainer, data.val)
        device = trainer.engine.device
        return {
            "device": _device_name(device),
            "on_gpu": device.type == "cuda",
            "processes": processes,
            "steps": seconds_per_step,
            "startup": imports + opened + max(0.0, built - statistics.fmean(seconds_per_step)),
            "look": min(_health_seconds(trainer) for _ in range(2)),  # the first one may compile
            "evaluation": evaluation,
            "evaluated_picture": evaluated_picture,
            "pictures": {name: len(images) for name, images in sets.items()},
        }


def _steps(trainer: Trainer) -> Iterator[float]:
    """Train as `train` does, epoch after epoch, and yield the seconds of each completed step."""
    from densevit.data.loaders import on_device
    from densevit.train.step import train_step
    from densevit.train.trainer import normalization

    engine, mean_and_std = trainer.engine, normalization(trainer.engine)
    engine.learner.train()
    since = time.perf_counter()
    while True:
        trainer.order.epoch = trainer.epoch
        for crops in on_device(trainer.batches, engine.device):
            batch = crops.developed(*mean_and_std)
            trainer.scheduler.step_update(trainer.step)
            trainer.sums.add(train_step(engine, batch, trainer.weight, trainer.step))
            trainer.step += 1
            now = _now(engine.device)
            yield now - since
            since = now


def _next_steps(steps: Iterator[float], least: int, most: int, limit: float) -> list[float]:
    """Return the next `most` steps, or fewer after `limit` seconds, but at least `least`."""
    seconds: list[float] = []
    while len(seconds) < most and (len(seconds) < least or sum(seconds) < limit):
        seconds.append(next(steps))
    return seconds


def _health_seconds(trainer: Trainer) -> float:
    from densevit.train.feature_health import measure_health

    begin = _now(trainer.engine.device)
    measure_health(trainer.engine.learner, trainer.health_batch, trainer.weight)
    return _now(trainer.engine.device) - begin


def _evaluation(trainer: Trainer, images: TestSet) -> tuple[float, float]:
    """Return the seconds that an evaluation takes to start, and for each image."""
    size = 2 * trainer.config.batch_size // trainer.config.grad_accumulation
    whole = math.ceil(len(images) / size)
    _predicted(trainer, images, size, 1)  # warm-up: a network's first pass is slower
    rounds = min(whole, 6 + 2 * trainer.config.workers)
    moments = _predicted(trainer, images, size, rounds)
    if rounds < 3:  # too few batches to separate the start from the rest
        return 0.0, (moments[-1] - moments[0]) / min(len(images), rounds * size)
    # Only until the last batch begins: stopping the DataLoader workers early takes time.
    picture = (moments[rounds] - moments[2]) / ((rounds - 2) * size)
    return max(0.0, moments[2] - moments[0] - size * picture), picture


def _predicted(trainer: Trainer, images: TestSet, size: int, rounds: int) -> list[float]:
    """Return the times at which an evaluation began, each of its batches began, and it ended."""
    from densevit.data.crops import plain_view
    from densevit.data.loaders import plain_batches
    from densevit.evaluate.predict import predict
    from densevit.train.step import autocast

    model, device = trainer.engine.learner.model, trainer.engine.device
    batches = plain_batches(
        images, plain_view(model.image_size, **model.preprocessing()), batch_size=size,
        workers=trainer.config.workers, pin=device.type == "cuda",
    )  # fmt: skip
    moments = [_now(device)]
    with autocast(trainer.engine):
        predict(model, batches, images, device, lambda: moments.append(_now(device)), rounds)
    return [*moments, _now(device)]


def _now(device: torch.device) -> float:
    """Return the time after the device has finished its queued work."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return processor_name()


def _one_line(error: Exception) -> str:
    """Return an error as one line; of a DataLoader worker's traceback, the last line."""
    lines = str(error).strip().splitlines()
    last = own_message(lines[-1]) if lines else ""
    return last if isinstance(error, UserError) else f"{type(error).__name__}: {last}"


if __name__ == "__main__":
    sys.exit(main())
