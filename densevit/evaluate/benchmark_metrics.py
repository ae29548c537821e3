"""Metrics of single benchmarks: reassessed labels, corruptions, cue conflict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from densevit.config.metrics import Metric
from densevit.data import imagenet
from densevit.data.imagenet_val import image_number
from densevit.evaluate.accuracy import Numbers, percent
from densevit.evaluate.predictions import ClassPredictions
from densevit.utils.errors import UserError


def reassessed_metrics(predictions: ClassPredictions) -> Numbers:
    """Score by the labels of Beyer et al. (2020); empty unless images have the archive's names."""
    known, hits = imagenet.reassessed(), []
    for sample, predicted in zip(predictions.samples, predictions.top[:, 0].tolist(), strict=True):
        number = image_number(sample)
        if number is None or not 1 <= number <= len(known):
            return {}
        if known[number - 1]:
            hits.append(predicted in known[number - 1])
    return {"real_top1": percent(np.array(hits)), "real_n": len(hits)} if hits else {}


def corruption_metrics(predictions: ClassPredictions) -> Numbers:
    """Return accuracy under each corruption, and mCE (Hendrycks and Dietterich 2019, section 4.1).

    An error is the mean over the severities with equal weights.
    """
    kinds = list(imagenet.CORRUPTIONS)
    places = {kind: 5 * number for number, kind in enumerate(kinds)}
    places_of = np.array([_cell(sample, places) for sample in predictions.samples])
    right = np.bincount(places_of, predictions.hits, 5 * len(kinds)).reshape(-1, 5)
    count = np.bincount(places_of, minlength=5 * len(kinds)).reshape(-1, 5)
    numbers: Numbers = {}
    errors = {}
    for kind, r, c in zip(kinds, right, count, strict=True):
        if c.all():
            accuracy = float(100 * (r / c).mean())
            numbers[f"top1_{kind}"] = accuracy
            errors[kind] = 100 - accuracy
    alexnet = imagenet.ALEXNET_ERROR
    if alexnet.keys() <= errors.keys():
        numbers["mce"] = float(np.mean([100 * errors[k] / alexnet[k] for k in alexnet]))
    return numbers


def _cell(sample: str, places: dict[str, int]) -> int:
    """Return the index of a sample's corruption and severity; `UserError` if its path has none."""
    parts = sample.split("/")
    for kind, severity in pairwise(parts):
        if kind in places and severity in ("1", "2", "3", "4", "5"):
            return places[kind] + int(severity) - 1
    raise UserError(
        f"imagenet-c: {sample}: its path names no corruption and severity; it must be "
        f"CORRUPTION/SEVERITY/WNID/image, such as fog/1/..."
    )


def select_cue_conflict(predictions: ClassPredictions) -> ClassPredictions:
    """Select the images whose shape and texture are of different classes."""
    textures = _textures(predictions)
    return predictions.select(np.flatnonzero((textures >= 0) & (textures != predictions.labels)))


def texture_metrics(predictions: ClassPredictions) -> Numbers:
    """Return `texture_top1` and, if shape or texture decided any image, `shape_bias` (percent)."""
    by_shape = predictions.hits
    by_texture = predictions.top[:, 0] == _textures(predictions)
    numbers: Numbers = {"texture_top1": percent(by_texture)}
    decided = int(by_shape.sum() + by_texture.sum())
    if decided:
        numbers["shape_bias"] = 100 * int(by_shape.sum()) / decided
    return numbers


def _textures(predictions: ClassPredictions) -> NDArray[np.int32]:
    """Return (n,) the class of each image's texture, -1 for another one."""
    place = {name: index for index, name in enumerate(predictions.classes)}
    textures = [place.get(imagenet.texture(sample), -1) for sample in predictions.samples]
    return np.array(textures, np.int32)


@dataclass(frozen=True)
class BenchmarkMetrics:
    """The metrics of a benchmark besides those of every test set.

    layout: its name in `known_benchmarks.LAYOUTS`.
    metrics: those with a title. `compute` may return more numbers.
    compute: computes them from the predictions.
    select: selects the images that all metrics of the benchmark are computed on.
    """

    layout: str
    metrics: tuple[Metric, ...]
    compute: Callable[[ClassPredictions], Numbers]
    select: Callable[[ClassPredictions], ClassPredictions] = lambda predictions: predictions


BENCHMARK_METRICS = (
    BenchmarkMetrics(
        "imagenet",
        (Metric("real_top1", "top-1 accuracy by the reassessed labels"),),
        reassessed_metrics,
    ),
    BenchmarkMetrics(
        "imagenet-c",
        (Metric("mce", "mean corruption error", lower_is_better=True),),
        corruption_metrics,
    ),
    BenchmarkMetrics(
        "cue-conflict",
        (Metric("shape_bias", "shape bias"), Metric("texture_top1", "predictions of the texture")),
        texture_metrics,
        select_cue_conflict,
    ),
)
