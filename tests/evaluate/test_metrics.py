"""Metrics of predictions, compared with independent calculations, and after a round trip to disk."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from densevit.evaluate.accuracy import bootstrap_interval, calibration_error
from densevit.evaluate.metrics import matched_clean, score
from densevit.evaluate.predictions import (
    ClassPredictions,
    MaskPredictions,
    joined,
    read_predictions,
    write_predictions,
)
from densevit.evaluate.segmentation_metrics import segmentation_metrics
from densevit.utils.errors import UserError


def made(count=500, classes=12, seed=0, **parts):
    """Return predictions of random logits, and the probabilities (n, classes) behind them."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, classes, count)
    logits = draws.normal(size=(count, classes)) * 2
    logits[np.arange(count), labels] += 1.5
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    top = np.argsort(-chances, axis=1)[:, :5]
    answers = ClassPredictions(
        benchmark="made", classes=tuple(f"c{n}" for n in range(classes)),
        samples=[f"c{label}/{n}.png" for n, label in enumerate(labels)],
        labels=labels.astype(np.int32), top=top.astype(np.int32),
        probabilities=np.take_along_axis(chances, top, axis=1).astype(np.float32),
        losses=-np.log(chances[np.arange(count), labels]).astype(np.float32),
        **{"anywhere": None, "among": {}, **parts},
    )  # fmt: skip
    return answers, chances


def test_the_numbers_are_those_of_scikit_learn():
    answers, chances = made()
    numbers = score(answers)
    assert numbers["top1"] == pytest.approx(100 * accuracy_score(answers.labels, chances.argmax(1)))
    assert numbers["top5"] == pytest.approx(
        100 * top_k_accuracy_score(answers.labels, chances, k=5)
    )
    assert numbers["nll"] == pytest.approx(log_loss(answers.labels, chances), rel=1e-5)
    assert (numbers["n"], numbers["ways"]) == (500, 12)


def test_calibration_error_by_hand():
    # Bins of a fifteenth: 0.97 and 0.99 share one, 0.05 and 0.5 have one each.
    error = calibration_error(np.array([0.97, 0.99, 0.5, 0.05], np.float32), np.array([1, 0, 1, 0]))
    assert error == pytest.approx(100 * (abs(1.96 - 1) + abs(0.5 - 1) + 0.05) / 4, rel=1e-5)
    assert calibration_error(np.ones(3, np.float32), np.ones(3)) == 0
    assert math.isnan(calibration_error(np.array([np.nan]), np.ones(1)))


def test_the_interval_is_that_of_drawing_pictures_again():
    hits = np.arange(400) < 300
    draws = np.random.default_rng(5)
    means = [draws.choice(hits, 400).mean() * 100 for _ in range(4000)]
    assert bootstrap_interval(300, 400) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.3)
    assert bootstrap_interval(400, 400) == (100, 100)


def test_all_is_computed_again_from_the_file_alone(tmp_path):
    among = {"imagenet-a": np.where(np.arange(500) % 3, 2, -1).astype(np.int32)}
    anywhere = np.arange(500, dtype=np.int32) % 13 - 1
    answers, _ = made(anywhere=anywhere, among=among)
    write_predictions(answers, tmp_path / "made.parquet")
    again = read_predictions(tmp_path / "made.parquet")
    assert score(again) == score(answers)
    assert score(answers)["top1_all"] == pytest.approx(100 * np.mean(anywhere == answers.labels))
    asked = among["imagenet-a"] >= 0
    right = among["imagenet-a"][asked] == answers.labels[asked]
    assert score(again)["top1_imagenet-a"] == pytest.approx(100 * right.mean())
    table = pq.read_table(tmp_path / "made.parquet")
    assert table.column_names == ["sample", "label", "loss", "top5", "probabilities", "anywhere", "among_imagenet-a"]  # fmt: skip
    assert json.loads(table.schema.metadata[b"classes"]) == list(answers.classes)


def test_a_sample_whose_name_is_not_utf8_is_written_all_the_same(tmp_path):
    predictions, _ = made(3)
    odd = replace(predictions, samples=["a/caf\udce9.png", "a/café.png", "a/b.png"])
    write_predictions(odd, tmp_path / "x.parquet")
    assert read_predictions(tmp_path / "x.parquet").samples == [
        "a/caf\\xe9.png", "a/café.png", "a/b.png"
    ]  # fmt: skip


def test_parts_that_are_joined_are_the_whole():
    labels = np.arange(500, dtype=np.int32) % 13 - 1
    answers, _ = made(anywhere=labels, among={"part": labels[::-1]})
    names = ("samples", "labels", "top", "probabilities", "losses", "anywhere")
    parts = [
        replace(
            answers, among={"part": answers.among["part"][place]},
            **{name: getattr(answers, name)[place] for name in names},
        )
        for place in (slice(0, 200), slice(200, 500))
    ]  # fmt: skip
    whole = joined(parts)
    for name in names:
        assert np.array_equal(getattr(whole, name), getattr(answers, name)), name
    assert np.array_equal(whole.among["part"], answers.among["part"])


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"x\.parquet: cannot be read as predictions"):
        read_predictions(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="cannot be read"):
        read_predictions(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    "odd", ["c0/x.png", "fog", "fog/c0/x.png", "fog/0/c0/x.png", "fog/6/c0/x.png", "snow/fog/x.png"]
)
def test_a_sample_of_no_corruption_is_named(odd):
    answers, _ = made(count=6, layout="imagenet-c")
    whole = [*(f"weather/fog/{severity}/c0/x.png" for severity in "12345"), "snow/snow/1/c0/x.png"]
    numbers = score(replace(answers, samples=whole))
    hits = answers.top[:5, 0] == answers.labels[:5]
    assert numbers["top1_fog"] == pytest.approx(100 * hits.mean())
    assert "top1_snow" not in numbers, "it lacks four of five severities"
    with pytest.raises(
        UserError, match=f"^imagenet-c: {odd}: its path names no corruption and severity"
    ):
        score(replace(answers, samples=[*whole[:5], odd]))


def told(labels, answers, classes="abc", **parts):
    """Return predictions for images of classes; both are strings with one letter per image."""
    place = {name: number for number, name in enumerate(classes)}
    top = np.array([[place[name]] for name in answers], np.int32)
    return ClassPredictions(
        benchmark="made", classes=tuple(classes), samples=[str(n) for n in range(len(labels))],
        labels=np.array([place[name] for name in labels], np.int32), top=top,
        probabilities=np.ones_like(top, np.float32), losses=np.zeros(len(labels), np.float32),
        **{"anywhere": None, "among": {}, **parts},
    )  # fmt: skip


def test_matched_clean_accuracy_by_hand():
    # a: 3 of 4 correct, b: 1 of 2, c is not in the benchmark, which has a once and b 4 times.
    clean = told("aaaabbc", "aaabbcb")
    shifted = told("babbb", "bbaaa", classes="cba")
    assert matched_clean(clean, shifted) == pytest.approx(100 * (1 * 0.75 + 4 * 0.5) / 5)
    assert score(shifted, clean)["matched_clean"] == matched_clean(clean, shifted)
    # For the same class frequencies it is the plain accuracy.
    assert matched_clean(clean, told("aaaabbc" * 2, "c" * 14)) == pytest.approx(100 * 4 / 7)


def test_matched_clean_accuracy_is_among_the_benchmarks_own_classes():
    # Among all classes the first two are wrong; among a and b, one of them is correct.
    clean = told("aabc", "ccbc", among={"part": np.array([0, 1, 1, -1], np.int32)})
    shifted = told("aab", "bbb", classes="ab", layout="part")
    assert matched_clean(clean, shifted) == pytest.approx(100 * (2 * 0.5 + 1 * 1) / 3)
    assert matched_clean(clean, replace(shifted, layout="")) is None, "among other classes"


def test_matched_clean_accuracy_needs_clean_pictures_of_each_class():
    assert matched_clean(told("ab", "ab"), told("abc", "abc")) is None
    assert "matched_clean" not in score(told("abc", "abc"), told("ab", "ab"))
    assert matched_clean(told("ab", "ab"), told("", "")) is None


def test_a_picture_of_void_pixels_alone_leaves_the_interval_a_number():
    right = np.array([[90, 5], [0, 0]], np.int32)
    whole = np.array([[95, 5], [0, 0]], np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = segmentation_metrics(
            MaskPredictions("dense-probe", ("a", "b"), ["x", "void"], right, whole, whole)
        )
    assert 0 < found["miou_low"] <= found["miou"] <= found["miou_high"] <= 100
