"""The linear probe compared with scikit-learn's logistic regression."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from densevit.evaluate.probes.linear import linear_probe


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(m, n, classes=5, width=20, noise=2.0):
    """Return clusters in features of very different sizes and means."""
    centres, labels = normal(classes, width, seed=0), torch.arange(m) % classes
    scale, shift = 10.0 ** (normal(width, seed=3) / 2), 5 * normal(width, seed=4)
    train = (centres[labels] + noise * normal(m, width, seed=1)) * scale + shift
    truth = torch.arange(n) % classes
    test = (centres[truth] + noise * normal(n, width, seed=2)) * scale + shift
    return train.half(), labels, test.half(), truth, classes


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_it_is_scikit_learns_logistic_regression(c):
    train, labels, test, _, classes = drawn(400, 1000)
    logits = linear_probe(train, labels, test, classes, l2=[1 / (c * len(train))])
    scaler = StandardScaler().fit(train.double().numpy())
    other = LogisticRegression(C=c, tol=1e-8, max_iter=2000)
    other.fit(scaler.transform(train.double().numpy()), labels.numpy())
    asked = scaler.transform(test.double().numpy())
    assert (logits.argmax(dim=1).numpy() == other.predict(asked)).mean() >= 0.99
    np.testing.assert_allclose(logits.softmax(dim=1), other.predict_proba(asked), atol=2e-3)


def test_what_can_be_separated_is_and_of_equally_right_strengths_the_surest_is_taken(caplog):
    caplog.set_level("INFO", logger="densevit")
    train, labels, test, truth, classes = drawn(300, 200, noise=0.05)
    assert torch.equal(linear_probe(train, labels, test, classes).argmax(dim=1), truth)
    assert "l2 1e-05, held-out top-1 100.0 %" in caplog.text


def test_the_strength_is_one_that_does_well_on_other_pictures(caplog):
    # Almost without a penalty, the few training images are fitted exactly.
    train, labels, test, truth, classes = drawn(400, 2000, width=200, noise=6.0)
    caplog.set_level("INFO", logger="densevit")
    chosen = linear_probe(train, labels, test, classes, l2=[1e-6, 1.0])
    assert "l2 1," in caplog.text
    weak, strong = (linear_probe(train, labels, test, classes, l2=[v]) for v in (1e-6, 1.0))
    loss = [log_loss(truth, logits.double().softmax(dim=1).numpy()) for logits in (weak, strong)]
    assert loss[1] < loss[0]
    torch.testing.assert_close(chosen, strong, atol=1e-3, rtol=1e-2)


def test_equal_input_gives_equal_output_and_blocks_change_nothing():
    train, labels, test, _, classes = drawn(200, 100)
    torch.manual_seed(1)
    one = linear_probe(train, labels, test, classes, l2=[1.0, 0.1])
    torch.manual_seed(2)
    assert torch.equal(linear_probe(train, labels, test, classes, l2=[1.0, 0.1]), one)
    blocks = 4 * 60 * 23  # of 23 rows
    small = linear_probe(train, labels, test, classes, l2=[1.0, 0.1], block_bytes=blocks)
    torch.testing.assert_close(small, one, atol=0.02, rtol=0.02)


def test_features_that_never_change_and_absent_classes_do_no_harm():
    train, labels, test, truth, classes = drawn(300, 200, noise=0.05)
    train[:, 3], test[:, 3] = 7, 8
    logits = linear_probe(train, labels, test, classes + 2)
    assert logits.shape == (200, classes + 2)
    assert torch.equal(logits.argmax(dim=1), truth)


def test_mistakes_are_named():
    train, labels, test, _, classes = drawn(20, 10)
    for arguments, said in [
        ((train[:1], labels[:1], test, classes), "train must be"),
        ((train, labels, test[:, :3], classes), r"test must be \(n, 20\)"),
        ((train, labels[1:], test, classes), r"train_labels must be \(20,\)"),
        ((train, labels, test, 4), r"\[0, 4\)"),
    ]:
        with pytest.raises(ValueError, match=said):
            linear_probe(*arguments)
    with pytest.raises(ValueError, match="l2 must"):
        linear_probe(train, labels, test, classes, l2=[])


def test_of_several_classes_it_is_a_logistic_regression_for_each(caplog):
    caplog.set_level("INFO", logger="densevit")
    train, first, test, _, classes = drawn(400, 300)
    several = torch.zeros(len(first), classes, dtype=torch.uint8)
    several.scatter_(1, torch.stack([first, (first + 2) % classes], dim=1), 1)
    logits = linear_probe(train, several, test, classes, l2=[1 / 400])
    scaler = StandardScaler().fit(train.double().numpy())
    rows, asked = (scaler.transform(part.double().numpy()) for part in (train, test))
    for column in range(classes):
        other = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000)
        other.fit(rows, several[:, column].numpy())
        wanted = other.predict_proba(asked)[:, 1]
        np.testing.assert_allclose(logits[:, column].sigmoid(), wanted, atol=2e-3)
    linear_probe(train, several, test, classes, steps=20)
    assert "held-out cross-entropy " in caplog.text
