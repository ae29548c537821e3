"""Metrics of predictions for images that may show several classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from densevit.evaluate.accuracy import Numbers
from densevit.evaluate.predictions import MultiLabelPredictions

RESAMPLES = 300  # of the images, for the interval: each sorts the images once a class


def multilabel_metrics(predictions: MultiLabelPredictions) -> Numbers:
    """Compute the metrics of a benchmark, in percent.

    - `map`: the mean over classes of the average precision (`average_precision`); classes that no
      image shows are left out. `map_low` and `map_high`: a 95 % bootstrap interval over the images
      (percentiles). `ap_CLASS`: of each class.
    - `nll`: the sum over classes of the binary cross-entropies in nats, averaged over the images.
    """
    labels, scores = predictions.labels, predictions.probabilities
    each = average_precision(labels, scores)
    low, high = _interval(labels, scores)
    losses = predictions.losses.astype(np.float64)
    return {
        "map": _mean(each),
        "map_low": low,
        "map_high": high,
        "nll": float(losses.mean()) if len(losses) else float("nan"),
        **{
            f"ap_{name}": float(value)
            for name, value in zip(predictions.classes, each, strict=True)
            if np.isfinite(value)
        },
        "ways": len(predictions.classes),
        "n": len(losses),
    }


def average_precision(
    labels: NDArray[np.integer], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the average precision of each class (C,) in percent; NaN if no image shows it.

    The area below the steps of the precision-recall curve, Σ (Rₖ − Rₖ₋₁) Pₖ over the thresholds,
    without interpolation. Images of equal score enter together, so that their order has no effect.
    scikit-learn's `average_precision_score` is the same.

    Args:
        labels: (n, C) 1 for each class of an image, else 0.
        scores: (n, C), higher for more probable classes.
    """
    found = np.full(labels.shape[1], np.nan)
    for column, (truth, score) in enumerate(zip(labels.T, scores.T, strict=True)):
        positives = int(truth.sum())
        if positives == 0:
            continue
        order = np.argsort(-score, kind="stable")
        right, ranked = np.cumsum(truth[order], dtype=np.float64), score[order]
        last = np.append(ranked[1:] != ranked[:-1], True)  # the last image of each score
        right, seen = right[last], np.flatnonzero(last) + 1
        found[column] = 100 * (np.diff(right, prepend=0) * right / seen).sum() / positives
    return found


def _interval(labels: NDArray[np.integer], scores: NDArray[np.floating]) -> tuple[float, float]:
    if len(labels) == 0:
        return float("nan"), float("nan")
    draws, count = np.random.default_rng(0), len(labels)
    means = []
    for _ in range(RESAMPLES):
        chosen = draws.integers(count, size=count)
        means.append(_mean(average_precision(labels[chosen], scores[chosen])))
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
