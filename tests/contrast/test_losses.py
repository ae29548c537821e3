"""The loss of a step, against the formula written out in float64."""

import math

import pytest
import torch
from torch import nn

from densevit.config import RunConfig
from densevit.contrast.losses import TEMPERATURE_RANGE, ContrastiveLoss, Projected
from densevit.model import Tokens

B, N, E, D, K = 4, 6, 10, 8, 40


def tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(B, E, generator=generator).requires_grad_()
    patches = torch.randn(B, N, E, generator=generator).requires_grad_()
    return Tokens(image, patches, torch.zeros(B, 3))


def setting(**fields):
    config = RunConfig(
        **{"queue_size": K, "dense_dim": D, "sampled_patches": 2, "temperature": 0.3, **fields}
    )
    torch.manual_seed(0)
    return ContrastiveLoss(config), nn.Linear(E, D), tokens(1), tokens(2)


def unit(x):
    return x / x.pow(2).sum(-1, keepdim=True).sqrt()


def by_hand(queries, keys, queue, temperature):
    """Mean InfoNCE of queries (M, D) with positives keys (M, D), in float64."""
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(float(query.detach() @ key.detach()) / temperature)
        negatives = sum(math.exp(float(query.detach() @ entry) / temperature) for entry in queue)
        total += -math.log(positive / (positive + negatives))
    return total / len(queries)


def call(loss, projection, view1, view2, ids=None):
    ids = torch.arange(B) if ids is None else ids
    generator = torch.Generator().manual_seed(5)
    return loss(Projected(view1, projection), Projected(view2, projection), ids, generator)


def test_dense_equals_the_formula():
    loss, projection, view1, view2 = setting(cl_mode="dense")
    queue = loss.queue.features.clone().double()
    got = call(loss, projection, view1, view2)
    project = projection.double()
    queries = unit(project(view1.patches.double()))
    keys = unit(project(view2.patches.double()))
    f1, f2 = unit(view1.patches.double()), unit(view2.patches.double())
    positives = torch.stack(
        [keys[b, (f2[b] @ f1[b, i]).argmax()] for b in range(B) for i in range(N)]
    )
    wanted = by_hand(queries.flatten(0, 1), positives, queue, 0.3)
    assert got.item() == pytest.approx(wanted, rel=1e-5)


def test_global_equals_the_formula():
    loss, projection, view1, view2 = setting(cl_mode="global")
    queue = loss.queue.features.clone().double()
    got = call(loss, projection, view1, view2)
    project = projection.double()
    queries, keys = unit(project(view1.image.double())), unit(project(view2.image.double()))
    assert got.item() == pytest.approx(by_hand(queries, keys, queue, 0.3), rel=1e-5)


@pytest.mark.parametrize("mode", ["dense", "global"])
def test_only_view_1_learns(mode):
    loss, projection, view1, view2 = setting(cl_mode=mode)
    call(loss, projection, view1, view2).backward()
    used, other = (view1.patches, view1.image) if mode == "dense" else (view1.image, view1.patches)
    assert used.grad.abs().sum() > 0
    assert other.grad is None
    assert view2.patches.grad is None
    assert view2.image.grad is None
    assert projection.weight.grad.abs().sum() > 0


def test_keys_enter_the_queue_after_the_loss_with_their_pictures():
    loss, projection, view1, view2 = setting(cl_mode="dense")
    ids = torch.tensor([9, 3, 7, 5])
    call(loss, projection, view1, view2, ids)
    assert loss.queue.image_ids[: 2 * B].tolist() == [9, 9, 3, 3, 7, 7, 5, 5]
    assert (loss.queue.image_ids[2 * B :] == -1).all()
    keys = unit(projection(view2.patches)).detach()
    for row, entry in enumerate(loss.queue.features[: 2 * B]):
        distance = (keys[row // 2] - entry).abs().amax(-1)
        assert distance.min() < 1e-6, "an entry is a key of its own picture"


def test_a_step_does_not_see_its_own_keys_and_the_next_one_does():
    config = {"cl_mode": "global", "queue_size": B, "exclude_same_image": False}
    loss, projection, view1, view2 = setting(**config)
    first = call(loss, projection, view1, view2)
    second = call(loss, projection, view1, view2)  # its negatives now are its own positives
    keys = unit(projection(view2.image)).detach().double()
    queries = unit(projection(view1.image)).detach().double()
    assert second.item() == pytest.approx(by_hand(queries, keys, keys, 0.3), rel=1e-5)
    assert first.item() != pytest.approx(second.item(), rel=1e-3)


@pytest.mark.parametrize("mode", ["dense", "global"])
def test_entries_of_the_own_picture_are_no_negatives(mode):
    loss, projection, view1, view2 = setting(
        cl_mode=mode, queue_size=2 * B if mode == "dense" else B
    )
    call(loss, projection, view1, view2)  # the queue now holds these pictures alone
    same = call(loss, projection, view1, view2)
    loss.queue.image_ids += 100
    others = call(loss, projection, view1, view2)
    assert same < others
    only = torch.zeros(B, dtype=torch.int64)
    loss.queue.image_ids.zero_()
    assert call(loss, projection, view1, view2, only).item() == 0.0  # nothing to tell it from


def test_query_patches_are_a_part_of_all_queries():
    loss, projection, view1, view2 = setting(cl_mode="dense", query_patches=N)
    every, projection2, *_ = setting(cl_mode="dense")
    projection2.load_state_dict(projection.state_dict())
    assert call(loss, projection, view1, view2).item() == pytest.approx(
        call(every, projection2, view1, view2).item(), rel=1e-5
    )
    few, *_ = setting(cl_mode="dense", query_patches=2)
    call(few, projection, view1, view2).backward()
    touched = (view1.patches.grad.abs().sum(-1) > 0).sum(-1)
    assert touched.tolist() == [2] * B


def test_matching_on_dense_features_compares_projections():
    loss, projection, view1, view2 = setting(cl_mode="dense", correspondence_features="dense")
    queue = loss.queue.features.clone().double()
    got = call(loss, projection, view1, view2)
    project = projection.double()
    queries = unit(project(view1.patches.double()))
    keys = unit(project(view2.patches.double()))
    best = torch.stack(
        [keys[b, (keys[b] @ queries[b, i]).argmax()] for b in range(B) for i in range(N)]
    )
    assert got.item() == pytest.approx(by_hand(queries.flatten(0, 1), best, queue, 0.3), rel=1e-5)


def test_a_learned_temperature_has_the_gradient_of_the_formula_and_stays_in_its_range():
    loss, projection, view1, view2 = setting(cl_mode="global", learnable_temp=True)
    queue = loss.queue.features.clone().double()
    call(loss, projection, view1, view2).backward()
    project = projection.double()
    queries = unit(project(view1.image.double())).detach()
    keys = unit(project(view2.image.double())).detach()
    step = 1e-5
    high, low = (by_hand(queries, keys, queue, 0.3 * math.exp(s)) for s in (step, -step))
    assert loss.log_temperature.grad.item() == pytest.approx((high - low) / (2 * step), rel=1e-4)
    for start, bound in ((-100.0, TEMPERATURE_RANGE[0]), (100.0, TEMPERATURE_RANGE[1])):
        loss.log_temperature.data.fill_(start)
        for _ in range(2):
            loss.clamp_temperature()
        assert loss.temperature().item() == pytest.approx(bound)


@pytest.mark.parametrize("strategy", ["random", "diverse", "hardest"])
def test_every_strategy_fills_the_queue(strategy):
    loss, projection, view1, view2 = setting(cl_mode="dense", sampling_strategy=strategy)
    call(loss, projection, view1, view2)
    assert (loss.queue.image_ids >= 0).sum() == 2 * B
