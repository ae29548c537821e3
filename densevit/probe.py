"""How fast a run is on this machine: `python -m densevit.probe IN.json OUT.json`.

IN is a list of `{"key", "config", "processes"}`: a name, all fields of a RunConfig, and how many
processes are to train it (1 if left out). OUT is an object of key to what `measured` returns,
written anew after each probe: a probe that is killed keeps what it has.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.config import RunConfig
from densevit.distributed import World
from densevit.errors import EXIT_CARRY_ON, EXIT_MISTAKE, UserError
from densevit.layers import Layer, build
from densevit.rundir import RunFolder, write_json

if TYPE_CHECKING:
    import torch

    from densevit.data.benchmarks import TestSet
    from densevit.trainer import Trainer

# What is measured, and after how many seconds of a slow model it is enough.
STEPS, STEPS_LEAST, STEPS_SECONDS = 20, 3, 120.0
WARM_UP_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what IN asks for. Returns the exit code, 0 also where a probe has found an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2:
        print("usage: python -m densevit.probe IN.json OUT.json", file=sys.stderr)
        return EXIT_MISTAKE
    source, target = map(Path, given)
    wanted = json.loads(source.read_text(encoding="utf-8"))
    done: dict[str, dict[str, Any]] = {}
    try:
        imports = _import_seconds()
        for number, item in enumerate(wanted, start=1):
            print(f"measuring {number} of {len(wanted)}", file=sys.stderr, flush=True)
            done[item["key"]] = measured(item["config"], item.get("processes", 1), imports)
            write_json(target, done)
    except KeyboardInterrupt:
        return EXIT_CARRY_ON
    return 0


def measured(settings: Mapping[str, Any], processes: int, imports: float) -> dict[str, Any]:
    """What a run with these settings takes, in seconds; `{"error": LINE}` if it cannot work.

    device, on_gpu: what it ran on.
    processes: what the numbers are for. On a GPU one of the `processes` with its part of the batch
        is measured, without the exchange of gradients; on a CPU, 1: the whole batch.
    steps: of each measured step, from the end of the one before: loading, augmentation, optimiser.
    startup: `imports`, finding the pictures, building, and what the first step takes longer.
    look: of a look at the features' health.
    evaluation, evaluated_picture: a set of n pictures takes `evaluation` + n · `evaluated_picture`.
    pictures: how many train, val and each benchmark have; no seconds.
    """
    import torch

    try:
        return _measured(_of_one_process(settings, processes), imports)
    except Exception as error:  # of the data, the model or the memory: the caller tells the user
        return {"error": _one_line(error)}
    finally:
        gc.collect()  # the loading processes and the memory of the last one
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if settings.get("compile"):
            torch.compiler.reset()  # it gives up on code that it has seen with too many networks


@dataclass(frozen=True)
class Place:
    """Where probes run: `name` tells its speeds from those of other places, `run` runs this module
    there on two files, IN and OUT, and returns its exit code."""

    name: str
    run: Callable[[Path, Path], int]


def this_machine(jobs: int = 1) -> Place:
    """Probes here, with the share of the processors that the local launcher gives to one of `jobs`
    runs at a time. What else such runs share (memory, disk, a GPU) is not measured."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    parts = [*_gpu_names(), _processor_name(), f"{environment['OMP_NUM_THREADS']} threads"]

    def run(source: Path, target: Path) -> int:
        command = [sys.executable, "-m", "densevit.probe", str(source), str(target)]
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603

    return Place(", ".join([*parts, f"torch {metadata.version('torch')}"]), run)


def _gpu_names() -> list[str]:
    """The kinds of NVIDIA GPUs in this machine, unless they are hidden from its programs."""
    folder = Path("/proc/driver/nvidia/gpus")
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not folder.is_dir():
        return []
    told = [(gpu / "information").read_text() for gpu in folder.iterdir()]
    models = (re.search(r"^Model:\s*(.*)$", text, re.MULTILINE) for text in told)
    return sorted({found[1].strip() for found in models if found})


def _processor_name() -> str:
    """The CPU's name as its maker has it, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _import_seconds() -> float:
    """What it takes to have everything imported, and a GPU ready where there is one."""
    begin = time.perf_counter()
    import torch

    import densevit.train  # noqa: F401

    if torch.cuda.is_available():
        torch.cuda.init()
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _of_one_process(settings: Mapping[str, Any], processes: int) -> tuple[RunConfig, int]:
    """What one process trains here, and of how many.

    First weights are left out: they may have to be fetched, and change nothing that is measured.
    """
    from densevit.train import check_device
    from densevit.trainer import on_gpu

    unloaded = {**settings, "pretrained": False, "init_checkpoint": None}
    config = build([Layer("probe", unloaded)])
    check_device(config)
    processes = processes if on_gpu(config) else 1
    if config.batch_size % (processes * config.grad_accumulation):
        raise UserError(
            f"batch_size: {config.batch_size} cannot be shared evenly by {processes} processes "
            f"with grad_accumulation {config.grad_accumulation}"
        )
    return config.model_copy(update={"batch_size": config.batch_size // processes}), processes


def _measured(shared: tuple[RunConfig, int], imports: float) -> dict[str, Any]:
    from densevit.data.sources import open_data
    from densevit.model import check_model
    from densevit.trainer import build_trainer

    config, processes = shared
    begin = time.perf_counter()
    data = open_data(config, check_model(config))
    opened = time.perf_counter() - begin
    sets = {"train": data.train, "val": data.val, **data.benchmarks}
    for images in sets.values():
        images.picture(0)  # a drawn set is drawn by the first run that ever needs it, for all
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="densevit-probe-") as folder:
        trainer = build_trainer(config, RunFolder(Path(folder)), data, lambda: 0, World())
        steps = _steps(trainer)
        next(steps)
        built = time.perf_counter() - begin
        # The loading processes have two batches each ready that cost nothing any more.
        _taken(steps, 0, 2 + 2 * config.workers, WARM_UP_SECONDS)
        taken = _taken(steps, STEPS_LEAST, STEPS, STEPS_SECONDS)
        evaluation, evaluated_picture = _evaluation(trainer, data.val)
        device = trainer.engine.device
        return {
            "device": _device_name(device),
            "on_gpu": device.type == "cuda",
            "processes": processes,
            "steps": taken,
            "startup": imports + opened + max(0.0, built - sum(taken) / len(taken)),
            "look": min(_look(trainer) for _ in range(2)),  # the first one may compile
            "evaluation": evaluation,
            "evaluated_picture": evaluated_picture,
            "pictures": {name: len(images) for name, images in sets.items()},
        }


def _steps(trainer: Trainer) -> Iterator[float]:
    """Train as `train` does, round after round; the seconds of each step, waited for."""
    from densevit.data.loading import on_device
    from densevit.step import train_step
    from densevit.trainer import looks

    engine, look = trainer.engine, looks(trainer.engine)
    engine.learner.train()
    since = time.perf_counter()
    while True:
        trainer.order.epoch = trainer.epoch
        for crops in on_device(trainer.batches, engine.device):
            batch = crops.developed(*look)
            trainer.scheduler.step_update(trainer.step)
            trainer.tally.add(train_step(engine, batch, trainer.weight, trainer.step))
            trainer.step += 1
            now = _now(engine.device)
            yield now - since
            since = now


def _taken(steps: Iterator[float], least: int, most: int, seconds: float) -> list[float]:
    """The next steps: `most`, or those that begin within some seconds, though at least `least`."""
    taken: list[float] = []
    while len(taken) < most and (len(taken) < least or sum(taken) < seconds):
        taken.append(next(steps))
    return taken


def _look(trainer: Trainer) -> float:
    from densevit.checkup import measure

    begin = _now(trainer.engine.device)
    measure(trainer.engine.learner, trainer.probe, trainer.weight)
    return _now(trainer.engine.device) - begin


def _evaluation(trainer: Trainer, images: TestSet) -> tuple[float, float]:
    """Seconds for beginning an evaluation, and for each picture of it."""
    size = 2 * trainer.config.batch_size // trainer.config.grad_accumulation
    whole = math.ceil(len(images) / size)
    _predicted(trainer, images, size, 1)  # what a network does for the first time takes longer
    rounds = min(whole, 6 + 2 * trainer.config.workers)
    moments = _predicted(trainer, images, size, rounds)
    if rounds < 3:  # too few to tell the beginning from the rest
        return 0.0, (moments[-1] - moments[0]) / min(len(images), rounds * size)
    # Up to where the last batch begins: loading processes that are stopped early take their time.
    picture = (moments[rounds] - moments[2]) / ((rounds - 2) * size)
    return max(0.0, moments[2] - moments[0] - size * picture), picture


def _predicted(trainer: Trainer, images: TestSet, size: int, rounds: int) -> list[float]:
    """The moments when evaluating some batches began, when each batch did, and the end."""
    from densevit.data.loading import plain_batches
    from densevit.data.views import plain_view
    from densevit.evaluate import predict
    from densevit.step import autocast

    model, device = trainer.engine.learner.model, trainer.engine.device
    batches = plain_batches(
        images, plain_view(model.image_size, **model.pictures()), batch_size=size,
        workers=trainer.config.workers, pin=device.type == "cuda",
    )  # fmt: skip
    moments = [_now(device)]
    with autocast(trainer.engine):
        predict(model, batches, images, device, lambda: moments.append(_now(device)), rounds)
    return [*moments, _now(device)]


def _now(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return _processor_name()


def _one_line(error: Exception) -> str:
    """An error as a run's status tells it: from a loading process the last line is the message."""
    lines = str(error).strip().splitlines()
    last = lines[-1].removeprefix("densevit.errors.UserError: ") if lines else ""
    return last if isinstance(error, UserError) else f"{type(error).__name__}: {last}"


if __name__ == "__main__":
    sys.exit(main())
