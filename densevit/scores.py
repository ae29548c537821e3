"""From answers to numbers: everything that results.json says of a benchmark.

All of it follows from a file of predictions, so that it can be computed again without the network.
Accuracies and errors are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from densevit.data import imagenet
from densevit.data.flat import picture_number
from densevit.errors import UserError
from densevit.predictions import Answers, Areas

BINS = 15  # of the calibration error: Guo et al., "On Calibration of Modern Neural Networks" (2017)
RESAMPLES = 10_000
MASK_RESAMPLES = 1_000
Numbers = dict[str, float | int]


def score(answers: Answers | Areas, clean: Answers | None = None) -> Numbers:
    """The numbers of a benchmark; `clean` are the answers to unshifted pictures, if there are any.

    - `top1`, `top5`: among the benchmark's own classes, of which there are `ways`; `top1_low` and
      `top1_high`: a 95 % bootstrap interval over the pictures (percentiles).
    - `top1_all`: among all that the network knows, where that is more.
    - `top1_NAME`: of the pictures of NAME's classes, among these: clean accuracy to compare with.
    - `matched_clean`: see there.
    - `nll`: mean cross-entropy in nats; `ece`: expected calibration error, 15 bins of equal width.
    - ImageNet's val: `real_top1` by the reassessed labels, of the `real_n` pictures that have one.
    - ImageNet-C: `top1_CORRUPTION`, and `mce` when all 15 that it is defined on are there.
    - cue conflict: `shape_bias`, `texture_top1`; pictures whose texture is that of their own class
      are left out everywhere.
    - Of masks: see `score_areas`.
    """
    if isinstance(answers, Areas):
        return score_areas(answers)
    if answers.layout == "cue-conflict":
        answers, textures = _in_conflict(answers)
    hits = answers.top[:, 0] == answers.labels
    low, high = bootstrap_interval(int(hits.sum()), len(hits))
    numbers: Numbers = {
        "top1": _percent(hits),
        "top1_low": low,
        "top1_high": high,
        "top5": _percent((answers.top == answers.labels[:, None]).any(axis=1)),
        "nll": float(answers.losses.astype(np.float64).mean()) if len(hits) else float("nan"),
        "ece": calibration_error(answers.probabilities[:, 0], hits),
        "ways": len(answers.classes),
        "n": len(hits),
    }
    if answers.anywhere is not None:
        numbers["top1_all"] = _percent(answers.anywhere == answers.labels)
    for name, chosen in answers.among.items():
        asked = chosen >= 0
        if asked.any():
            numbers[f"top1_{name}"] = _percent(chosen[asked] == answers.labels[asked])
    matched = None if clean is None else matched_clean(clean, answers)
    if matched is not None:
        numbers["matched_clean"] = matched
    if answers.layout == "imagenet":
        numbers |= _reassessed(answers)
    if answers.layout == "imagenet-c":
        numbers |= _corruptions(answers.samples, hits)
    if answers.layout == "cue-conflict":
        texture_hits = answers.top[:, 0] == textures
        decided = int(hits.sum() + texture_hits.sum())
        numbers["texture_top1"] = _percent(texture_hits)
        if decided:
            numbers["shape_bias"] = 100 * int(hits.sum()) / decided
    return numbers


def score_areas(areas: Areas) -> Numbers:
    """The numbers of a segmentation, over all pixels of all `n` pictures but void ones.

    `iou_CLASS` is intersection over union, `miou` their mean; a class absent from both masks and
    predictions is in neither. `miou_low` and `miou_high` are a 95 % bootstrap interval over the
    pictures, `pixel_accuracy` the share of right pixels.
    """
    rows = np.stack([areas.right, areas.predicted, areas.labelled]).astype(np.float64)  # (3, n, C)
    iou = _iou(rows.sum(axis=1))
    count = len(areas.samples)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), MASK_RESAMPLES)
    resampled = _iou(np.einsum("rn,knc->krc", drawn, rows, optimize=True))
    told = ~np.isnan(resampled).all(axis=1)  # not of pictures of void pixels alone
    spread = np.nanmean(resampled[told], axis=1)
    low, high = np.percentile(spread, [2.5, 97.5])
    right, _, labelled = rows.sum(axis=(1, 2))
    return {
        "miou": float(np.nanmean(iou)),
        "miou_low": float(low),
        "miou_high": float(high),
        "pixel_accuracy": float(100 * right / labelled),
        **{
            f"iou_{name}": float(value)
            for name, value in zip(areas.classes, iou, strict=True)
            if not np.isnan(value)
        },
        "n": count,
    }


def _iou(pixels: NDArray) -> NDArray:
    """In percent (..., C), from right, predicted and labelled pixels (3, ..., C); NaN: no pixel."""
    right, predicted, labelled = pixels
    either = predicted + labelled - right
    return np.where(either > 0, 100 * right / np.maximum(either, 1), np.nan)


def matched_clean(clean: Answers, shifted: Answers) -> float | None:
    """Clean accuracy in percent as it would be with the class frequencies of a shifted test set.

    Of another mix of classes a test set is easier or harder without any shift. So clean pictures of
    classes that it lacks are left out, and the accuracy on each of its classes counts by the
    class's share of its pictures. Where it is asked among a part of the classes, as ImageNet-A is,
    so are the clean pictures.

    None where that cannot be said: for other classes, or one of which there is no clean picture.
    """
    if set(clean.classes) == set(shifted.classes):
        labels, hits = clean.labels, clean.top[:, 0] == clean.labels
    elif shifted.layout in clean.among and set(shifted.classes) <= set(clean.classes):
        chosen = clean.among[shifted.layout]
        labels = clean.labels[chosen >= 0]
        hits = chosen[chosen >= 0] == labels
    else:
        return None
    place = {name: index for index, name in enumerate(clean.classes)}
    wanted = np.array([place[name] for name in shifted.classes])[shifted.labels]
    count = np.bincount(labels, minlength=len(place))
    share = np.bincount(wanted, minlength=len(place))
    if not len(wanted) or (count[share > 0] == 0).any():
        return None
    right = np.bincount(labels, hits, minlength=len(place)) / np.maximum(count, 1)
    return float(100 * (right * share).sum() / share.sum())


def bootstrap_interval(hits: int, count: int, seed: int = 0) -> tuple[float, float]:
    """A 95 % percentile interval of an accuracy, in percent.

    Drawing `count` pictures with replacement and counting the hits among them is drawing from a
    binomial distribution, which is done at once here.
    """
    if count == 0:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).binomial(count, hits / count, RESAMPLES)
    low, high = np.percentile(drawn, [2.5, 97.5]) * (100 / count)
    return float(low), float(high)


def calibration_error(confidence: NDArray, hits: NDArray) -> float:
    """Expected calibration error in percent: the mean gap between confidence and accuracy over
    `BINS` bins of equal width, weighted by their pictures (Guo et al. 2017, equation 3)."""
    if len(hits) == 0 or not np.isfinite(confidence).all():
        return float("nan")
    # A bin holds its upper edge, as (0, 1/15].
    place = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(place, confidence, BINS) - np.bincount(place, hits, BINS)
    return float(100 * np.abs(gap).sum() / len(hits))


def _reassessed(answers: Answers) -> Numbers:
    """By the labels of Beyer et al. (2020), where the pictures have the archive's names."""
    numbers = [picture_number(sample) for sample in answers.samples]
    known = imagenet.reassessed()
    if not all(number is not None and 1 <= number <= len(known) for number in numbers):
        return {}
    hits = [
        int(answer) in known[number - 1]
        for number, answer in zip(numbers, answers.top[:, 0], strict=True)
        if known[number - 1]
    ]
    return {"real_top1": _percent(np.array(hits)), "real_n": len(hits)} if hits else {}


def _corruptions(samples: Sequence[str], hits: NDArray) -> Numbers:
    """Accuracy under each corruption, and mCE (Hendrycks and Dietterich 2019, section 4.1).

    An error is the mean over the severities, each of which counts alike.
    """
    kinds = list(imagenet.CORRUPTIONS)
    places = {kind: 5 * number for number, kind in enumerate(kinds)}
    places_of = np.array([_cell(sample, places) for sample in samples])
    right = np.bincount(places_of, hits, 5 * len(kinds)).reshape(-1, 5)
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
    """Of its corruption and severity. Errors: `UserError` if its path names none."""
    parts = sample.split("/")
    for kind, severity in pairwise(parts):
        if kind in places and severity in ("1", "2", "3", "4", "5"):
            return places[kind] + int(severity) - 1
    wanted = "wanted CORRUPTION/SEVERITY/WNID/picture, as fog/1/..."
    raise UserError(f"imagenet-c: {sample}: names no corruption and severity ({wanted})")


def _in_conflict(answers: Answers) -> tuple[Answers, NDArray]:
    """The pictures whose shape and texture are of different classes, and their textures."""
    place = {name: index for index, name in enumerate(answers.classes)}
    textures = np.array([place.get(imagenet.texture(s), -1) for s in answers.samples], np.int32)
    kept = (textures >= 0) & (textures != answers.labels)
    chosen = np.flatnonzero(kept)
    parts = {
        name: getattr(answers, name)[chosen]
        for name in ("labels", "top", "probabilities", "losses")
    }
    anywhere = None if answers.anywhere is None else answers.anywhere[chosen]
    samples = [answers.samples[i] for i in chosen]
    among = {name: values[chosen] for name, values in answers.among.items()}
    return (
        Answers(
            answers.benchmark, answers.classes, samples, **parts, anywhere=anywhere, among=among,
            layout=answers.layout,
        ),
        textures[chosen],
    )  # fmt: skip


def _percent(hits: NDArray) -> float:
    return float(100 * hits.astype(np.float64).mean()) if len(hits) else float("nan")
