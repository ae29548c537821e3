"""Accuracy, calibration error and bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15  # calibration error: Guo et al., "On Calibration of Modern Neural Networks" (2017)
RESAMPLES = 10_000
Numbers = dict[str, float | int]


def bootstrap_interval(hits: int, count: int, seed: int = 0) -> tuple[float, float]:
    """Return a 95 % bootstrap percentile interval of an accuracy, in percent.

    The number of hits among `count` images drawn with replacement is binomial, so it is drawn
    directly.
    """
    if count == 0:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).binomial(count, hits / count, RESAMPLES)
    low, high = np.percentile(drawn, [2.5, 97.5]) * (100 / count)
    return float(low), float(high)


def calibration_error(confidence: NDArray[np.floating], hits: NDArray[np.bool_]) -> float:
    """Return the expected calibration error in percent (Guo et al. 2017, equation 3).

    The mean gap between confidence and accuracy over `BINS` equal bins, weighted by their images.
    """
    if len(hits) == 0 or not np.isfinite(confidence).all():
        return float("nan")
    # A bin includes its upper edge, as (0, 1/15].
    place = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(place, confidence, BINS) - np.bincount(place, hits, BINS)
    return float(100 * np.abs(gap).sum() / len(hits))


def percent(hits: NDArray[np.bool_]) -> float:
    return float(100 * hits.astype(np.float64).mean()) if len(hits) else float("nan")
