"""Nearest neighbors compared with scikit-learn, for any block size."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from labeled import Labeled
from sklearn.neighbors import KNeighborsClassifier

from densevit.evaluate.metrics import score
from densevit.evaluate.probes.features import full_precision
from densevit.evaluate.probes.knn import knn, predict
from densevit.evaluate.probes.run import FeatureSet, ProbeInput


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(m=700, n=150, classes=7, width=16):
    centres = normal(classes, width, seed=0)
    labels = torch.arange(m) % classes
    train = (centres[labels] + 1.5 * normal(m, width, seed=1)).half()
    test = (centres[torch.arange(n) % classes] + 1.5 * normal(n, width, seed=2)).half()
    return train * 3, labels, test, classes


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 0.5), (200, 0.07)])
def test_scores_are_scikit_learns(k, temperature):
    train, labels, test, classes = drawn()
    scores = knn(train, labels, test, classes, k=k, temperature=temperature)
    other = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    ).fit(train.double().numpy(), labels.numpy())
    wanted = other.predict_proba(test.double().numpy())
    np.testing.assert_allclose(scores / scores.sum(dim=1, keepdim=True), wanted, atol=1e-5)
    assert scores.argmax(dim=1).tolist() == other.predict(test.double().numpy()).tolist()


@pytest.mark.parametrize("block_bytes", [4 * 150 * 7, 4 * 150 * 64, 4 * 30 * 1, 30_000])
def test_blocks_change_nothing(block_bytes):
    train, labels, test, classes = drawn()
    whole = knn(train, labels, test, classes, block_bytes=2**40)
    parts = knn(train, labels, test, classes, block_bytes=block_bytes)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=0)
    assert torch.equal(parts.argmax(dim=1), whole.argmax(dim=1))


@pytest.mark.parametrize("width", [1, 3, 5, 100])
@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_of_equal_neighbours_the_first_count(width, k):
    # Unit vectors on the axes: similarities are exactly 1 or 0, and each row has many ties.
    place = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1])
    train, labels = torch.eye(2)[place], torch.arange(12)
    scores = knn(train, labels, torch.eye(2), 12, k=k, block_bytes=4 * 2 * width)
    for axis in (0, 1):
        same = [i for i in range(12) if place[i] == axis]
        other = [i for i in range(12) if place[i] != axis]
        wanted = (same + other)[:k]
        assert scores[axis].nonzero()[:, 0].tolist() == sorted(wanted)
        for i in wanted:
            weight = math.exp(1 / 0.07) if i in same else 1.0
            assert scores[axis, i].item() == pytest.approx(weight, rel=1e-5)


def test_k_is_clipped_and_a_length_of_zero_is_like_nothing():
    train, labels = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([1, 0])
    scores = knn(train, labels, torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 3, k=20)
    e = math.exp(1 / 0.07)
    torch.testing.assert_close(scores, torch.tensor([[1.0, 1.0, 0.0], [1.0, e, 0.0]]))


def test_autocast_and_tf32_are_off_inside_only():
    train, labels, test, classes = drawn()
    wanted = knn(train.float(), labels, test.float(), classes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn(train.float(), labels, test.float(), classes), wanted)
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    try:
        products.allow_tf32 = True
        with full_precision(torch.device("cpu")):
            assert not products.allow_tf32
        assert products.allow_tf32
    finally:
        products.allow_tf32 = before


def test_mistakes_are_named():
    train, labels, test, classes = drawn()
    for arguments, said in [
        ((train[:0], labels[:0], test, classes), "train must be"),
        ((train, labels, test[:, :3], classes), r"test must be \(n, 16\)"),
        ((train, labels[1:], test, classes), r"train_labels must be \(700,\)"),
        ((train, labels, test, 6), r"\[0, 6\)"),
    ]:
        with pytest.raises(ValueError, match=said):
            knn(*arguments)
    with pytest.raises(ValueError, match="k must"):
        knn(train, labels, test, classes, k=0)


def test_images_of_several_classes_have_the_share_of_the_votes_that_has_each():
    train, first, test, classes = drawn()
    second = (first + 3) % classes
    several = torch.zeros(len(first), classes, dtype=torch.uint8)
    several.scatter_(1, torch.stack([first, second], dim=1), 1)
    wanted = sum(
        votes / votes.sum(dim=1, keepdim=True)
        for votes in (knn(train, labels, test, classes) for labels in (first, second))
    )
    shares = knn(train, several, test, classes, block_bytes=20_000)
    torch.testing.assert_close(shares, wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="train_labels must be"):
        knn(train, several[:, 1:], test, classes)


def test_a_class_without_a_vote_is_never_a_hit():
    """All neighbors are of class 0 and every label is wrong: no top-5 may contain it by accident."""
    train, wrong = Labeled(12, [0] * 24), Labeled(12, range(1, 12))
    probe = ProbeInput(
        "knn", FeatureSet(train, torch.ones(24, 4)), FeatureSet(wrong, torch.ones(11, 4)),
        None, 32, 0, torch.device("cpu"), lambda: None,
    )  # fmt: skip
    found = predict(probe)
    assert found.top.tolist() == [[0, -1, -1, -1, -1]] * 11
    numbers = score(found)
    assert (numbers["top1"], numbers["top5"]) == (0, 0)
    right = replace(probe, test=FeatureSet(Labeled(12, [0] * 11), probe.test.features))
    assert score(predict(right))["top5"] == 100
