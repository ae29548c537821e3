"""Evaluation of a run: val after each epoch, watched sets every few epochs, all sets at the end."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from densevit.config.evaluation_names import benchmark_names
from densevit.config.identity import SCHEMA_VERSION, identity
from densevit.config.probes import main_metric, probes_by_name
from densevit.data.crops import plain_view
from densevit.data.datasets import Data
from densevit.data.image import Images
from densevit.data.test_set import TestSet
from densevit.evaluate.accuracy import Numbers
from densevit.evaluate.metrics import score
from densevit.evaluate.predict import PredictionRows, predict_together
from densevit.evaluate.predictions import (
    ImagePredictions,
    Predictions,
    read_predictions,
    write_predictions,
)
from densevit.evaluate.probes.feature_store import Resources
from densevit.evaluate.probes.masks import masked_sets
from densevit.evaluate.probes.run import ProbedNetwork, reads_both_tokens, run_probe
from densevit.evaluate.recompute import compute_metrics
from densevit.evaluate.resume import predict_in_parts, stored
from densevit.runs.records import ResultsRecord
from densevit.train.step import autocast
from densevit.train.trainer import Trainer, write_line
from densevit.utils.distributed import all_reduce_max
from densevit.utils.errors import Stopped
from densevit.utils.files import write_json

log = logging.getLogger("densevit")


def validate(trainer: Trainer, data: Data) -> None:
    """Log the accuracy on val and, every `watch_every` epochs, on subsets of the watched sets."""
    config = trainer.config
    if data.val is None:
        log.info("epoch %d of %d", trainer.epoch, config.epochs)
        return
    numbers = score(_predicted(trainer, data.val).to_predictions(data.val))
    trainer.top1 = numbers.get("top1")
    logged = [name for name in ("map", "top1", "top5", "nll") if name in numbers]
    line = {f"val/{name}": float(numbers[name]) for name in logged}
    if trainer.epoch % config.watch_every == 0:
        for name in config.watched:
            found = _watched(trainer, data, name)
            metric = main_metric(name, found).name
            line[f"watch/{name}/{metric}"] = float(found[metric])
    write_line(trainer, line)
    watched = "".join(f", {n.split('/')[1]} {v:.1f}" for n, v in line.items() if n[:5] == "watch")
    log.info(
        "epoch %d of %d: val %s%s",
        trainer.epoch, config.epochs, _accuracies(numbers), watched,
    )  # fmt: skip


def _watched(trainer: Trainer, data: Data, name: str) -> Numbers:
    if name in probes_by_name():
        network = _probed_network(trainer, None)
        return compute_metrics(trainer.folder, _run_probe(trainer, data, network, name))
    test_set = data.benchmarks[name]
    chosen = _spread(len(test_set), trainer.config.watch_samples)
    return score(_predicted(trainer, test_set, chosen).to_predictions(test_set))


def _accuracies(numbers: Numbers) -> str:
    titles = {"map": "mAP", "top1": "top-1", "top5": "top-5"}
    return ", ".join(f"{t} {numbers[name]:.1f} %" for name, t in titles.items() if name in numbers)


def evaluate_missing(trainer: Trainer, data: Data) -> None:
    """Evaluate val and all benchmarks missing in results.json; then the run is finished.

    Predictions of an interrupted attempt are reused.
    """
    folder, config = trainer.folder, trainer.config
    ids = identity(config)
    results = folder.results() or ResultsRecord(
        run=ids.run, cell=ids.cell, seed=config.seed, schema_version=SCHEMA_VERSION,
        epochs=config.epochs, train_seconds=trainer.seconds, benchmarks={},
    )  # fmt: skip
    network, line = _probed_network(trainer, folder.features_folder), {}
    for name in benchmark_names(config):
        if name in results["benchmarks"]:
            continue
        numbers = compute_metrics(folder, _predictions(trainer, data, network, name))
        results["benchmarks"][name] = numbers
        trainer.top1 = results["benchmarks"].get("val", {}).get("top1")
        main = main_metric(name, numbers)
        log.info("%s: %s, %d images", name, main.text(numbers[main.name]), numbers["n"])
        line.update(_metrics(name, numbers))
    new = bool(line) or not folder.results_file.exists()  # without labels there may be no line
    if new and trainer.metrics is not None:
        if line:
            write_line(trainer, line)
        if not trainer.metrics.flush():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.metrics_file))
        trainer.metrics.sync()
        results["metrics_bytes"] = trainer.metrics.length
        write_json(folder.results_file, results)
        shutil.rmtree(folder.features_folder, ignore_errors=True)


def _predictions(trainer: Trainer, data: Data, network: ProbedNetwork, name: str) -> Predictions:
    """Return the finished network's predictions on a test set or probe, and write their file."""
    path, world = trainer.folder.predictions_file(name), trainer.world
    if stored(path, network.source, world):
        return read_predictions(path)
    test_set = data.test_sets.get(name)
    if test_set is not None:

        def predict(chosen: range) -> ImagePredictions:
            return _predicted(trainer, test_set, chosen).to_predictions(test_set)

        return predict_in_parts(predict, test_set, path, network.source, world)
    predictions = _run_probe(trainer, data, network, name)
    if world.writes:
        write_predictions(predictions, path, network.source)
    return predictions


def _run_probe(trainer: Trainer, data: Data, network: ProbedNetwork, name: str) -> Predictions:
    splits: tuple[Images, Images] = data.train, data.shown
    if probes_by_name()[name].masks:
        splits = masked_sets(trainer.config, network.image_size)
    with autocast(trainer.engine):
        return run_probe(name, network, splits)


def _probed_network(trainer: Trainer, features_folder: Path | None) -> ProbedNetwork:
    """Return the network of the run for its probes."""
    config, model = trainer.config, trainer.engine.learner.model
    resources = Resources(
        trainer.engine.device, trainer.world, _batch_size(trainer), config.workers,
        lambda: _raise_if_stopped(trainer),
    )  # fmt: skip
    return ProbedNetwork(
        model, model.image_size, model.preprocessing(), model.grid, resources,
        both=reads_both_tokens(config.probes),
        source=f"{identity(config).run}, step {trainer.step}",
        features_folder=features_folder,
        seed=config.seed,
    )  # fmt: skip


def _batch_size(trainer: Trainer) -> int:
    """Return the images of a training forward pass, both views: without gradients they fit."""
    config = trainer.config
    return 2 * config.batch_size // (trainer.world.ranks * config.grad_accumulation)


def _metrics(name: str, metrics: Numbers) -> dict[str, float]:
    """Return a benchmark's metrics as NAME/METRIC, without its numbers of images and classes."""
    return {
        f"{name}/{key}": float(value)
        for key, value in metrics.items()
        if key not in ("n", "ways") and not key.startswith("n_")
    }


def _spread(count: int, most: int) -> Sequence[int]:
    """Return at most `most` of `count` indices, evenly spaced: images are sorted by class."""
    size = min(most, count)
    return [place * count // size for place in range(size)]


def _predicted(
    trainer: Trainer, test_set: TestSet, chosen: Sequence[int] | None = None
) -> PredictionRows:
    """Return predictions for all (or the chosen) images; all processes share the work."""
    model, config, world = trainer.engine.learner.model, trainer.config, trainer.world
    with autocast(trainer.engine):
        return predict_together(
            model, test_set, plain_view(model.image_size, **model.preprocessing()),
            trainer.engine.device, world, batch_size=_batch_size(trainer), workers=config.workers,
            boundary=lambda: _raise_if_stopped(trainer), chosen=chosen,
        )  # fmt: skip


def _raise_if_stopped(trainer: Trainer) -> None:
    number = all_reduce_max(trainer.stop_signal(), trainer.world)
    if number:
        raise Stopped(signal.Signals(number).name)
