"""Intersection over union of predicted patch masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from densevit.evaluate.accuracy import Numbers
from densevit.evaluate.predictions import MaskPredictions

MASK_RESAMPLES = 1_000


def segmentation_metrics(predictions: MaskPredictions) -> Numbers:
    """Compute segmentation metrics over all pixels of all `n` images, except void pixels.

    `iou_CLASS` is intersection over union and `miou` their mean; classes absent from both masks and
    predictions are left out. `miou_low` and `miou_high` are a 95 % bootstrap interval over the
    images. `pixel_accuracy` is the share of correct pixels. All but `n` are in percent.
    """
    counts = predictions.right, predictions.predicted, predictions.labelled
    rows = np.stack(counts).astype(np.float64)  # (3, n, C)
    iou = _iou(rows.sum(axis=1))
    count = len(predictions.samples)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), MASK_RESAMPLES)
    resampled = _iou(np.einsum("rn,knc->krc", weights, rows, optimize=True))
    scored = ~np.isnan(resampled).all(axis=1)  # without resamples that hold only void pixels
    spread = np.nanmean(resampled[scored], axis=1)
    low, high = np.percentile(spread, [2.5, 97.5])
    right, _, labelled = rows.sum(axis=(1, 2))
    return {
        "miou": float(np.nanmean(iou)),
        "miou_low": float(low),
        "miou_high": float(high),
        "pixel_accuracy": float(100 * right / labelled),
        **{
            f"iou_{name}": float(value)
            for name, value in zip(predictions.classes, iou, strict=True)
            if not np.isnan(value)
        },
        "n": count,
    }


def _iou(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return IoU in percent (..., C) from pixel counts (3, ..., C); NaN for classes without any."""
    right, predicted, labelled = pixels
    either = predicted + labelled - right
    return np.where(either > 0, 100 * right / np.maximum(either, 1), np.nan)
