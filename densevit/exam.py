"""What a run is asked: val after each epoch, watched sets every few, and everything at its end."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densevit.answering import answered, clean_answers, recalled
from densevit.config import PROBES, SCHEMA_VERSION, identity
from densevit.data.benchmarks import TestSet
from densevit.data.names import CLEAN, benchmark_names
from densevit.data.sources import Data
from densevit.data.views import plain_view
from densevit.distributed import agreed
from densevit.errors import Stopped
from densevit.evaluate import Predictions, predict_together
from densevit.frozen.store import Means
from densevit.predictions import Answers, Areas, write_answers
from densevit.probes import Probing, both_wanted, masked_sets, probe
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
    if name in PROBES:
        with autocast(trainer.engine):
            return score(probe(name, _probing(trainer, data, None)))
    asked = data.benchmarks[name]
    chosen = _spread(len(asked), trainer.config.watch_samples)
    return score(_predicted(trainer, asked, chosen).answers(asked))


def evaluate_missing(trainer: Trainer, data: Data) -> None:
    """Evaluate val and the benchmarks that results.json lacks; then the run is finished.

    What an interrupted attempt has answered is not asked again.
    """
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
    probing, line = _probing(trainer, data, folder.features_folder), {}
    for name in benchmark_names(config):
        if name in results["benchmarks"]:
            continue
        answers = _answers(trainer, data, probing, name)
        clean = None if name in (*CLEAN, *PROBES) else clean_answers(folder)
        numbers = results["benchmarks"][name] = score(answers, clean)
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
        shutil.rmtree(folder.features_folder, ignore_errors=True)


def _answers(trainer: Trainer, data: Data, probing: Probing, name: str) -> Answers | Areas:
    """What the finished network answers to a test set or a probe, and its file."""
    path, world = trainer.folder.predictions_file(name), trainer.world
    found = recalled(path, probing.source, world)
    if found is not None:
        return found
    asked = data.val if name == "val" else data.benchmarks.get(name)
    if asked is not None:

        def ask(chosen: range) -> Answers:
            return _predicted(trainer, asked, chosen).answers(asked)

        return answered(ask, asked, path, probing.source, world)
    with autocast(trainer.engine):
        found = probe(name, probing)
    if world.writes:
        write_answers(found, path, probing.source)
    return found


def _probing(trainer: Trainer, data: Data, kept: Path | None) -> Probing:
    """What it takes to try the run's frozen features."""
    config, model = trainer.config, trainer.engine.learner.model
    means = Means(
        trainer.engine.device, trainer.world, _batch_size(trainer), config.workers,
        lambda: _stop_if_asked(trainer),
    )  # fmt: skip
    return Probing(
        model, model.image_size, model.pictures(), model.grid, means,
        splits=lambda: (data.train, data.val),
        masked=lambda: masked_sets(config, model.image_size),
        both=both_wanted(config.probes),
        source=f"{identity(config).run}, step {trainer.step}",
        kept=kept,
        seed=config.seed,
    )  # fmt: skip


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
