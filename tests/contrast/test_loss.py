"""The losses of a step, compared with the formula in float64."""

import copy
import math

import pytest
import torch
from torch import nn

from densevit.config.loss_modes import loss_weights
from densevit.config.run_config import TEMPERATURE_RANGE, RunConfig
from densevit.contrast.loss import ContrastiveLoss
from densevit.contrast.matching import random_match
from densevit.contrast.pairs import EncodedView
from densevit.contrast.queue import FeatureQueue
from densevit.models.vit import Tokens

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
    heads = nn.ModuleDict({kind: nn.Linear(E, D) for kind in loss_weights(config)})
    return ContrastiveLoss(config), heads, tokens(1), tokens(2)


def unit(x):
    return x / x.pow(2).sum(-1, keepdim=True).sqrt()


def by_hand(queries, keys, queue, temperature):
    """Return the mean InfoNCE of queries (M, D) with positive keys (M, D), in float64."""
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(float(query.detach() @ key.detach()) / temperature)
        negatives = sum(math.exp(float(query.detach() @ entry) / temperature) for entry in queue)
        total += -math.log(positive / (positive + negatives))
    return total / len(queries)


def projected(heads, kind, view1, view2):
    """Return unit queries (B, N, D), and keys before normalization, in float64."""
    head = copy.deepcopy(heads[kind]).double()
    if kind == "global":
        one, two = view1.image.double().unsqueeze(1), view2.image.double().unsqueeze(1)
    else:
        one, two = view1.patches.double(), view2.patches.double()
    return unit(head(one)).detach(), head(two).detach()


def dense_by_hand(heads, view1, view2, queue):
    queries, raw = projected(heads, "dense", view1, view2)
    f1, f2 = unit(view1.patches.double()), unit(view2.patches.double())
    keys = unit(raw)
    best = [keys[b, (f2[b] @ f1[b, i]).argmax()] for b in range(B) for i in range(N)]
    return by_hand(queries.flatten(0, 1), torch.stack(best), queue, 0.3)


def global_by_hand(heads, view1, view2, queue):
    queries, raw = projected(heads, "global", view1, view2)
    return by_hand(queries[:, 0], unit(raw)[:, 0], queue, 0.3)


def content(loss, kind):
    return loss.queues[kind].features.clone().double()


def call(loss, heads, view1, view2, ids=None, true_matches=None, *, enqueue=True, **kwargs):
    ids = torch.arange(B) if ids is None else ids
    generator = torch.Generator().manual_seed(5)
    views = EncodedView(view1, heads), EncodedView(view2, heads)
    losses = loss(*views, ids, generator, true_matches, **kwargs)
    if enqueue:
        loss.enqueue([losses.keys])
    return losses.total


def test_dense_equals_the_formula():
    loss, heads, view1, view2 = setting(cl_mode="dense")
    queue = content(loss, "dense")
    got = call(loss, heads, view1, view2)
    assert got.item() == pytest.approx(dense_by_hand(heads, view1, view2, queue), rel=1e-5)


def test_global_equals_the_formula():
    loss, heads, view1, view2 = setting(cl_mode="global")
    queue = content(loss, "global")
    got = call(loss, heads, view1, view2)
    assert got.item() == pytest.approx(global_by_hand(heads, view1, view2, queue), rel=1e-5)


@pytest.mark.parametrize("weight", [0.5, 0.3])
def test_joint_is_the_weighted_sum_with_a_head_and_a_queue_for_each(weight):
    loss, heads, view1, view2 = setting(cl_mode="joint", joint_dense_weight=weight)
    queues = content(loss, "global"), content(loss, "dense")
    assert not torch.equal(*queues)
    got = call(loss, heads, view1, view2)
    wanted = (1 - weight) * global_by_hand(heads, view1, view2, queues[0])
    wanted += weight * dense_by_hand(heads, view1, view2, queues[1])
    assert got.item() == pytest.approx(wanted, rel=1e-5)
    assert loss.queues["global"].image_ids[: 2 * B].tolist() == [0, 1, 2, 3, -1, -1, -1, -1]
    assert loss.queues["dense"].image_ids[: 2 * B].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("weight", "mode"), [(0.0, "global"), (1.0, "dense")])
def test_joint_at_its_ends_is_the_loss_that_is_left(weight, mode):
    alone, heads, view1, view2 = setting(cl_mode=mode)
    joint, same_heads, *_ = setting(cl_mode="joint", joint_dense_weight=weight)
    assert list(joint.queues) == list(same_heads) == [mode]
    assert torch.equal(call(joint, same_heads, view1, view2), call(alone, heads, view1, view2))


@pytest.mark.parametrize("mode", ["dense", "global", "joint"])
def test_only_view_1_learns(mode):
    loss, heads, view1, view2 = setting(cl_mode=mode)
    before = {kind: queue.features.clone() for kind, queue in loss.queues.items()}
    call(loss, heads, view1, view2).backward()
    assert (view1.patches.grad is not None) is (mode != "global")
    assert (view1.image.grad is not None) is (mode != "dense")
    assert view2.patches.grad is None
    assert view2.image.grad is None
    for head in heads.values():
        assert head.weight.grad.abs().sum() > 0
    for kind, queue in loss.queues.items():
        assert not queue.features.requires_grad
        assert not torch.equal(queue.features, before[kind])


def test_the_gradient_of_the_queries_is_that_of_the_formula():
    loss, heads, view1, view2 = setting(cl_mode="dense")
    queue = content(loss, "dense")
    call(loss, heads, view1, view2).backward()
    head = copy.deepcopy(heads["dense"]).double()
    head.weight.grad = None
    patches = view1.patches.detach().double().requires_grad_()
    f2 = unit(view2.patches.detach().double())
    best = (unit(patches.detach()) @ f2.transpose(1, 2)).argmax(-1)
    keys = unit(head(view2.patches.detach().double())).detach()
    positives = torch.stack([keys[b, best[b]] for b in range(B)])
    queries = unit(head(patches))
    logits = torch.cat(
        [(queries * positives).sum(-1, keepdim=True), queries @ queue.T], dim=-1
    ).flatten(0, 1)
    target = torch.zeros(B * N, dtype=torch.int64)
    nn.functional.cross_entropy(logits / 0.3, target).backward()
    for got, wanted in (
        (view1.patches.grad, patches.grad),
        (heads["dense"].weight.grad, head.weight.grad),
    ):
        assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_keys_enter_the_queue_after_the_loss_with_their_pictures():
    loss, heads, view1, view2 = setting(cl_mode="dense")
    ids = torch.tensor([9, 3, 7, 5])
    call(loss, heads, view1, view2, ids)
    queue = loss.queues["dense"]
    assert queue.image_ids[: 2 * B].tolist() == [9, 9, 3, 3, 7, 7, 5, 5]
    assert (queue.image_ids[2 * B :] == -1).all()
    keys = unit(projected(heads, "dense", view1, view2)[1])
    for row, entry in enumerate(queue.features[: 2 * B]):
        distance = (keys[row // 2] - entry).abs().amax(-1)
        assert distance.min() < 1e-6, "an entry is a key of its own picture"


def test_pooled_negatives_are_pooled_before_they_are_normalised():
    loss, heads, view1, view2 = setting(cl_mode="dense", dense_negatives="pooled")
    call(loss, heads, view1, view2, torch.tensor([9, 3, 7, 5]))
    _, raw = projected(heads, "dense", view1, view2)
    queue = loss.queues["dense"]
    assert queue.image_ids[: B + 1].tolist() == [9, 3, 7, 5, -1]
    torch.testing.assert_close(queue.features[:B].double(), unit(raw.mean(1)), atol=1e-6, rtol=0)
    other = unit(unit(raw).mean(1))  # the other order is another vector
    assert (queue.features[:B] - other).abs().max() > 1e-3


def test_the_queues_change_when_they_are_told_to():
    loss, heads, view1, view2 = setting(cl_mode="joint")
    before = copy.deepcopy(loss.state_dict())
    call(loss, heads, view1, view2, enqueue=False)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_a_step_does_not_see_its_own_keys_and_the_next_one_does():
    config = {"cl_mode": "global", "queue_size": B, "exclude_same_image": False}
    loss, heads, view1, view2 = setting(**config)
    first = call(loss, heads, view1, view2)
    second = call(loss, heads, view1, view2)  # its negatives are now its own positives
    queries, raw = projected(heads, "global", view1, view2)
    keys = unit(raw)[:, 0]
    assert second.item() == pytest.approx(by_hand(queries[:, 0], keys, keys, 0.3), rel=1e-5)
    assert first.item() != pytest.approx(second.item(), rel=1e-3)


@pytest.mark.parametrize("mode", ["dense", "global"])
def test_entries_of_the_own_picture_are_no_negatives(mode):
    loss, heads, view1, view2 = setting(cl_mode=mode, queue_size=2 * B if mode == "dense" else B)
    call(loss, heads, view1, view2)  # the queue now holds only these images
    same = call(loss, heads, view1, view2)
    loss.queues[mode].image_ids += 100
    others = call(loss, heads, view1, view2)
    assert same < others
    only = torch.zeros(B, dtype=torch.int64)
    loss.queues[mode].image_ids.zero_()
    assert call(loss, heads, view1, view2, only).item() == 0.0  # no negative is left


def test_query_patches_are_a_part_of_all_queries():
    loss, heads, view1, view2 = setting(cl_mode="dense", query_patches=N)
    every, same_heads, *_ = setting(cl_mode="dense")
    assert call(loss, heads, view1, view2).item() == pytest.approx(
        call(every, same_heads, view1, view2).item(), rel=1e-5
    )
    few, *_ = setting(cl_mode="dense", query_patches=2)
    call(few, heads, view1, view2).backward()
    touched = (view1.patches.grad.abs().sum(-1) > 0).sum(-1)
    assert touched.tolist() == [2] * B


def test_matching_on_dense_features_compares_projections():
    loss, heads, view1, view2 = setting(cl_mode="dense", correspondence_features="dense")
    queue = content(loss, "dense")
    got = call(loss, heads, view1, view2)
    queries, raw = projected(heads, "dense", view1, view2)
    keys = unit(raw)
    best = torch.stack(
        [keys[b, (keys[b] @ queries[b, i]).argmax()] for b in range(B) for i in range(N)]
    )
    assert got.item() == pytest.approx(by_hand(queries.flatten(0, 1), best, queue, 0.3), rel=1e-5)


TRUTH = torch.tensor([[0, -1, 5, 2, -1, 1], [-1] * N, [5, 4, 3, 2, 1, 0], [-1, -1, -1, -1, -1, 3]])


@pytest.mark.parametrize("query_patches", ["all", 3])
def test_geometry_takes_the_true_matches_and_drops_patches_without_one(query_patches):
    loss, heads, view1, view2 = setting(
        cl_mode="dense", correspondence_features="geometry", query_patches=query_patches
    )
    queue = content(loss, "dense")
    got = call(loss, heads, view1, view2, true_matches=TRUTH)
    got.backward()
    learned = view1.patches.grad.abs().sum(-1) > 0  # (B, N)
    assert not learned[TRUTH < 0].any()
    kept = (TRUTH >= 0) & learned
    if query_patches == "all":
        assert torch.equal(kept, TRUTH >= 0)
    queries, raw = projected(heads, "dense", view1, view2)
    keys = unit(raw)
    positives = torch.stack([keys[b, TRUTH[b, i]] for b, i in kept.nonzero().tolist()])
    assert got.item() == pytest.approx(by_hand(queries[kept], positives, queue, 0.3), rel=1e-5)


def test_geometry_without_any_overlap_has_loss_zero_and_no_gradient():
    loss, heads, view1, view2 = setting(cl_mode="dense", correspondence_features="geometry")
    got = call(loss, heads, view1, view2, true_matches=torch.full((B, N), -1))
    got.backward()
    assert got.item() == 0
    assert view1.patches.grad.abs().max() == 0


def test_geometry_without_recorded_crops_is_refused():
    loss, heads, view1, view2 = setting(cl_mode="dense", correspondence_features="geometry")
    with pytest.raises(ValueError, match=r"true_matches must be given .* 'geometry'"):
        call(loss, heads, view1, view2)


def test_a_learned_temperature_has_the_gradient_of_the_formula():
    loss, heads, view1, view2 = setting(cl_mode="global", learnable_temp=True)
    queue = content(loss, "global")
    call(loss, heads, view1, view2).backward()
    queries, raw = projected(heads, "global", view1, view2)
    queries, keys = queries[:, 0], unit(raw)[:, 0]
    step = 1e-5
    high, low = (by_hand(queries, keys, queue, 0.3 * math.exp(s)) for s in (step, -step))
    assert loss.log_temperature.grad.item() == pytest.approx((high - low) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(("push", "bound"), [(1.0, 0), (-1.0, 1)])
def test_a_temperature_that_goes_to_its_bound_stays_there(push, bound):
    loss, *_ = setting(cl_mode="global", learnable_temp=True)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.3)
    seen = []
    for _ in range(40):
        loss.log_temperature.grad = torch.tensor(push)
        optimizer.step()
        loss.clamp_temperature()
        seen.append(loss.temperature().item())
    low, high = TEMPERATURE_RANGE
    assert all(low * 0.9999 <= t <= high * 1.0001 for t in seen)
    assert seen[-20:] == pytest.approx([TEMPERATURE_RANGE[bound]] * 20)
    assert call(loss, *setting(cl_mode="global")[1:]).isfinite()


def test_random_matches_have_nothing_to_do_with_the_features():
    loss, heads, view1, view2 = setting(cl_mode="dense", correspondence_features="random")
    queue = content(loss, "dense")
    got = call(loss, heads, view1, view2)
    partner = random_match(B, N, torch.Generator().manual_seed(5), "cpu")  # as `call` draws
    assert partner.unique().numel() > 1
    queries, raw = projected(heads, "dense", view1, view2)
    keys = unit(raw)
    positives = torch.stack([keys[b, partner[b, i]] for b in range(B) for i in range(N)])
    wanted = by_hand(queries.flatten(0, 1), positives, queue, 0.3)
    assert got.item() == pytest.approx(wanted, rel=1e-5)


def test_hardest_enqueues_the_keys_least_like_the_queue():
    loss, heads, view1, view2 = setting(cl_mode="dense", sampling_strategy="hardest")
    before = content(loss, "dense")
    call(loss, heads, view1, view2)
    keys = unit(projected(heads, "dense", view1, view2)[1])
    for b in range(B):
        means = torch.stack([(before @ key).mean() for key in keys[b]])
        wanted = keys[b, means.argsort()[:2]]
        got = loss.queues["dense"].features[2 * b : 2 * b + 2].double()
        for entry in got:
            assert (wanted - entry).abs().amax(-1).min() < 1e-6


@pytest.mark.parametrize("strategy", ["random", "diverse", "hardest"])
def test_every_strategy_fills_the_queue(strategy):
    loss, heads, view1, view2 = setting(cl_mode="dense", sampling_strategy=strategy)
    call(loss, heads, view1, view2)
    assert (loss.queues["dense"].image_ids >= 0).sum() == 2 * B


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["dense", "global", "joint"])
def test_half_precision_features_of_huge_norm_give_no_nan(mode, dtype):
    loss, _, view1, view2 = setting(cl_mode=mode, dense_negatives="pooled")
    heads = nn.ModuleDict({kind: nn.Identity() for kind in loss.weights})
    loss.queues = nn.ModuleDict({kind: FeatureQueue(K, E) for kind in loss.weights})
    # The square of any of these overflows float16, as would the norm.
    huge = [Tokens(*(t.detach().to(dtype) * 1e4 for t in view)) for view in (view1, view2)]
    exact = [Tokens(*(t.float() for t in view)) for view in huge]
    wanted = call(loss, heads, *exact, enqueue=False)
    for token in huge[0]:
        token.requires_grad_()
    got = call(loss, heads, *huge)
    got.backward()
    assert got.dtype == torch.float32
    assert got.isfinite()
    assert got == wanted, "as if the features had come in float32"
    learned = huge[0].image if mode == "global" else huge[0].patches
    assert learned.grad.isfinite().all()
    assert all(queue.features.isfinite().all() for queue in loss.queues.values())
