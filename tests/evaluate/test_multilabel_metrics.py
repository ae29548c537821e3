"""Metrics of images that may show several classes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from densevit.data.test_set import TestSet
from densevit.evaluate.metrics import score
from densevit.evaluate.multilabel_metrics import average_precision
from densevit.evaluate.predict import from_logits
from densevit.evaluate.predictions import (
    MultiLabelPredictions,
    joined,
    read_image_predictions,
    write_predictions,
)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 5), st.integers(1, 9))
def test_average_precision_is_scikit_learn_s_also_for_equal_scores(seed, images, classes, values):
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 2, (images, classes)).astype(np.uint8)
    scores = (draws.integers(0, values, (images, classes)) / values).astype(np.float32)
    for truth, score_, found in zip(
        labels.T, scores.T, average_precision(labels, scores), strict=True
    ):
        if truth.any():
            assert found == pytest.approx(100 * average_precision_score(truth, score_))
        else:
            assert np.isnan(found)


class Images:
    classes = ("a", "b", "c")
    ids = tuple(f"image-{i}" for i in range(50))
    labels = np.random.default_rng(0).integers(0, 2, (50, 3)).astype(np.uint8)

    def __len__(self):
        return 50


def predicted():
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    return logits, from_logits(TestSet("many", Images(), Images.classes), logits)


def test_predictions_of_several_classes_and_their_metrics():
    logits, found = predicted()
    assert isinstance(found, MultiLabelPredictions)
    assert np.array_equal(found.labels, Images.labels)
    labels = torch.from_numpy(Images.labels).double()
    wanted = F.binary_cross_entropy(logits.double().sigmoid(), labels, reduction="none").sum(1)
    assert found.losses == pytest.approx(wanted.numpy(), rel=1e-5)
    numbers = score(found)
    each = [numbers[f"ap_{name}"] for name in Images.classes]
    assert numbers["map"] == pytest.approx(np.mean(each))
    assert numbers["map_low"] < numbers["map"] < numbers["map_high"]
    assert numbers["nll"] == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert (numbers["n"], numbers["ways"]) == (50, 3)
    assert "top1" not in numbers, "accuracy among single classes means something else"


def test_predictions_of_several_classes_are_read_back_and_joined(tmp_path):
    _, found = predicted()
    write_predictions(found, tmp_path / "many.parquet", "a run")
    again = read_image_predictions(tmp_path / "many.parquet")
    assert type(again) is MultiLabelPredictions
    twice = joined([again, again])
    for name in ("labels", "probabilities", "losses"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
        assert np.array_equal(getattr(twice, name)[50:], getattr(found, name))
    assert list(twice.samples) == [*Images.ids, *Images.ids]
    assert score(again) == score(found)
