"""The order of predicted classes where logits are equal, or far apart."""

import torch
from labeled import Labeled

from densevit.data.test_set import TestSet
from densevit.evaluate.predict import from_logits


def test_of_equal_logits_the_first_classes_are_predicted():
    logits = torch.zeros(3, 40)
    logits[1, [7, 30, 31]] = 1
    logits[2, 5:20] = torch.nan
    images = Labeled(40, [0, 7, 1])
    found = from_logits(TestSet("made", images, images.classes), logits)
    assert found.top.tolist() == [[0, 1, 2, 3, 4], [7, 30, 31, 0, 1], [0, 1, 2, 3, 4]]


def test_classes_are_ranked_by_logits_where_probabilities_are_0():
    logits = torch.tensor([[0.0, -300, -200, -400, -500, -250, 400]])
    images = Labeled(7, [6])
    found = from_logits(TestSet("made", images, images.classes), logits)
    assert found.top.tolist() == [[6, 0, 2, 5, 1]]
    # A class of several outputs has their mean probability.
    groups = ((6,), (0, 4), (1, 3), (2,), (5,))
    few = Labeled(5, [0])
    found = from_logits(TestSet("made", few, few.classes, groups=groups), logits)
    assert found.top.tolist() == [[0, 1, 3, 4, 2]]
    assert found.losses.tolist() == [0]
