"""What a run is asked: val after each epoch, watched sets every few, and everything at its end."""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from densevit.config import SCHEMA_VERSION, identity
from densevit.data.benchmarks import TestSet
from densevit.data.names import benchmark_names
from densevit.data.sources import Data
from densevit.data.views import plain_view
from densevit.distributed import agreed
from densevit.errors import Stopped
from densevit.evaluate import Predictions, predict_together
from densevit.predictions import Answers, check_finite, write_answers
from densevit.rundir import read_json, write_json
from densevit.scores import Numbers, score
from densevit.step import autocast
from densevit.trainer import Trainer, write_line

log = logging.getLogger("densevit")


def validate(trainer: Trainer, data: Data) -> None:
    """Log the accuracy on val, and every `watch_every` epochs that on parts of the watched sets."""
    config = trainer.config
    numbers = score(_predicted(trainer, data.val).answers(data.val))
    trainer.top1 = float(numbers["top1"])
    line = {f"val/{name}": float(numbers[name]) for name in ("top1", "top5", "nll")}
    if trainer.epoch % config.watch_every == 0:
        for name in config.watched:
            line[f"watch/{name}/top1"] = float(_watched(trainer, data, name)["top1"])
    write_line(trainer, line)
    told = "".join(f", {n.split('/')[1]} {v:.1f}" for n, v in line.items() if n[:5] == "watch")
    log.info(
        "epoch %d of %d: val top-1 %.1f %%, top-5 %.1f %%%s",
        trainer.epoch, config.epochs, numbers["top1"], numbers["top5"], told,
    )  # fmt: skip


def _watched(trainer: Trainer, data: Data, name: str) -> Numbers:
    if name == "knn":
        return _probed(trainer, data)("knn")[0]
    asked = data.benchmarks[name]
    chosen = _spread(len(asked), trainer.config.watch_samples)
    return score(_predicted(trainer, asked, chosen).answers(asked))


def evaluate_missing(trainer: Trainer, data: Data) -> None:
    """Evaluate val and the benchmarks that results.json lacks; then the run is finished."""
    folder, config = trainer.folder, trainer.config
    ids = identity(config)
    results: dict[str, Any] = read_json(folder.results_file) or {
        "run": ids.run,
        "cell": ids.cell,
        "seed": config.seed,
        "schema_version": SCHEMA_VERSION,
        "epochs": config.epochs,
        "train_seconds": trainer.seconds,
        "benchmarks": {},
    }
    asked = {"val": data.val, **data.benchmarks}
    probed = _probed(trainer, data) if config.probes else None
    line = {}
    for name in benchmark_names(config):
        if name in results["benchmarks"]:
            continue
        if name in asked:
            answers = _predicted(trainer, asked[name]).answers(asked[name])
            numbers = score(answers)
            check_finite(answers)
        else:
            numbers, answers = probed(name)
        if trainer.world.writes and answers is not None:
            write_answers(answers, folder.predictions_file(name))
        results["benchmarks"][name] = numbers
        trainer.top1 = results["benchmarks"]["val"]["top1"]
        what = "top1" if "top1" in numbers else "miou"
        told = {"top1": "top-1", "miou": "mIoU"}[what]
        log.info("%s: %s %.1f %% of %d", name, told, numbers[what], numbers["n"])
        line.update(_metrics(name, numbers))
    if line and trainer.metrics is not None:
        write_line(trainer, line)
        if not trainer.metrics.flush():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.metrics_file))
        trainer.metrics.sync()
        results["metrics_bytes"] = trainer.metrics.length
        write_json(folder.results_file, results)


def _probed(trainer: Trainer, data: Data) -> Callable[[str], tuple[Numbers, Answers | None]]:
    """A function that tries the run's frozen features at a probe."""
    from densevit.probes import Probing, probe  # torchmetrics and the rest, where it is wanted

    config, world = trainer.config, trainer.world
    probing = Probing(
        trainer.engine.learner.model, config, data, trainer.engine.device, world,
        _batch_size(trainer), lambda: _stop_if_asked(trainer),
    )  # fmt: skip

    def probed(name: str) -> tuple[Numbers, Answers | None]:
        with autocast(trainer.engine):
            return probe(name, probing)

    return probed


def _batch_size(trainer: Trainer) -> int:
    """What a training step holds, without its gradients."""
    config = trainer.config
    return 2 * config.batch_size // (trainer.world.ranks * config.grad_accumulation)


def _metrics(name: str, numbers: Numbers) -> dict[str, float]:
    """Numbers of a benchmark as metrics of the run; its size is none."""
    return {f"{name}/{key}": float(v) for key, v in numbers.items() if key not in ("n", "ways")}


def _spread(count: int, most: int) -> Sequence[int]:
    """The places of at most so many of `count` pictures, evenly over all: over the classes too,
    by which they are sorted."""
    kept = min(most, count)
    return [place * count // kept for place in range(kept)]


def _predicted(
    trainer: Trainer, asked: TestSet, chosen: Sequence[int] | None = None
) -> Predictions:
    """The predictions for all (or the chosen) pictures, made by all processes together."""
    model, config, world = trainer.engine.learner.model, trainer.config, trainer.world
    with autocast(trainer.engine):
        return predict_together(
            model, asked, plain_view(model.image_size, **model.pictures()), trainer.engine.device,
            world, batch_size=_batch_size(trainer), workers=config.workers,
            boundary=lambda: _stop_if_asked(trainer), chosen=chosen,
        )  # fmt: skip


def _stop_if_asked(trainer: Trainer) -> None:
    number = agreed(trainer.asked(), trainer.world)
    if number:
        raise Stopped(signal.Signals(number).name)
