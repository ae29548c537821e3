"""The metrics of a benchmark in results.json, computed from predictions.

They need only a predictions file, so they can be recomputed without the network. Accuracies and
errors are in percent.
"""

from __future__ import annotations

import numpy as np

from densevit.evaluate.accuracy import Numbers, bootstrap_interval, calibration_error, percent
from densevit.evaluate.benchmark_metrics import BENCHMARK_METRICS
from densevit.evaluate.multilabel_metrics import multilabel_metrics
from densevit.evaluate.predictions import (
    ClassPredictions,
    MaskPredictions,
    MultiLabelPredictions,
    Predictions,
)
from densevit.evaluate.segmentation_metrics import segmentation_metrics


def score(predictions: Predictions, clean: ClassPredictions | None = None) -> Numbers:
    """Compute the metrics of a benchmark; `clean` are predictions on unshifted images, if any.

    - `top1`, `top5`: among the benchmark's own classes; `ways` is their number. `top1_low` and
      `top1_high`: a 95 % bootstrap interval over the images (percentiles).
    - `top1_all`: among all classes of the network, if it has more.
    - `top1_NAME`: on images of NAME's classes, among these: the clean accuracy to compare with.
    - `matched_clean`: see the function of that name.
    - `n_CLASS`: the number of images of each class, if a class has none.
    - `nll`: mean cross-entropy in nats; `ece`: expected calibration error, 15 bins of equal width.
    - masks: see `segmentation_metrics`; images with several classes: see `multilabel_metrics`.
    - and those of the benchmark's record in `BENCHMARK_METRICS`:
      ImageNet val: `real_top1` by the reassessed labels, on the `real_n` images that have one.
      ImageNet-C: `top1_CORRUPTION`, and `mce` if all 15 corruptions that define it are present.
      cue conflict: `shape_bias`, `texture_top1`; images whose texture is of their own class are
      left out of all metrics.
    """
    if isinstance(predictions, MaskPredictions):
        return segmentation_metrics(predictions)
    if isinstance(predictions, MultiLabelPredictions):
        return multilabel_metrics(predictions)
    own = [record for record in BENCHMARK_METRICS if record.layout == predictions.layout]
    for record in own:
        predictions = record.select(predictions)
    hits = predictions.hits
    low, high = bootstrap_interval(int(hits.sum()), len(hits))
    numbers: Numbers = {
        "top1": percent(hits),
        "top1_low": low,
        "top1_high": high,
        "top5": percent((predictions.top == predictions.labels[:, None]).any(axis=1)),
        "nll": float(predictions.losses.astype(np.float64).mean()) if len(hits) else float("nan"),
        "ece": calibration_error(predictions.probabilities[:, 0], hits),
        "ways": len(predictions.classes),
        "n": len(hits),
    }
    numbers |= _images_of_classes(predictions)
    if predictions.anywhere is not None:
        numbers["top1_all"] = percent(predictions.anywhere == predictions.labels)
    for name, predicted in predictions.among.items():
        inside = predicted >= 0
        if inside.any():
            numbers[f"top1_{name}"] = percent(predicted[inside] == predictions.labels[inside])
    matched = None if clean is None else matched_clean(clean, predictions)
    if matched is not None:
        numbers["matched_clean"] = matched
    for record in own:
        numbers |= record.compute(predictions)
    return numbers


def _images_of_classes(predictions: ClassPredictions) -> Numbers:
    """Return the number of images of each class if one has none, else nothing."""
    counts = np.bincount(predictions.labels, minlength=len(predictions.classes))
    if counts.all():
        return {}
    pairs = zip(predictions.classes, counts.tolist(), strict=True)
    return {f"n_{name}": count for name, count in pairs}


def matched_clean(clean: ClassPredictions, shifted: ClassPredictions) -> float | None:
    """Return clean accuracy in percent, reweighted to the class frequencies of a shifted test set.

    Class frequencies alone make a test set easier or harder. Clean images of classes that the
    shifted set lacks are left out, and the accuracy on each class is weighted by the class's share
    of the shifted images. If the shifted set uses a subset of the classes, like ImageNet-A, clean
    images are also classified among these.

    None if the sets have different classes, or if a class has no clean image.
    """
    if set(clean.classes) == set(shifted.classes):
        labels, hits = clean.labels, clean.hits
    elif shifted.layout in clean.among and set(shifted.classes) <= set(clean.classes):
        predicted = clean.among[shifted.layout]
        labels = clean.labels[predicted >= 0]
        hits = predicted[predicted >= 0] == labels
    else:
        return None
    place = {name: index for index, name in enumerate(clean.classes)}
    shifted_labels = np.array([place[name] for name in shifted.classes])[shifted.labels]
    count = np.bincount(labels, minlength=len(place))
    share = np.bincount(shifted_labels, minlength=len(place))
    if not len(shifted_labels) or (count[share > 0] == 0).any():
        return None
    right = np.bincount(labels, hits, minlength=len(place)) / np.maximum(count, 1)
    return float(100 * (right * share).sum() / share.sum())
