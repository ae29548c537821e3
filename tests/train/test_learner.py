"""One step: the effect of each loss weight, the moving average, and settings without an effect."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densevit.config.run_config import RunConfig
from densevit.data.batch import Batch
from densevit.train.feature_health import gradient_balance
from densevit.train.learner import build_learner, contrastive_weight
from densevit.train.step import build_engine, train_step
from densevit.utils.distributed import World

SMALL = {
    "model_kwargs": {
        "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2,
    },
    "batch_size": 4, "learning_rate": 1e-3, "queue_size": 50, "sampled_patches": 3,
    "dense_dim": 16, "projection_hidden_dim": 32,
}  # fmt: skip
CPU = torch.device("cpu")


def learner_of(**fields):
    torch.manual_seed(0)
    return build_learner(RunConfig(**{**SMALL, **fields}), 5, CPU)


def batch_of(seed, size=4):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(size, 3, 32, 32, generator=generator) for _ in range(2)]
    place = torch.tensor([[0.0, 0, 32, 32]]).repeat(size, 1)
    labels = torch.randint(5, (size,), generator=generator)
    ids = torch.arange(size * seed, size * (seed + 1))
    return Batch(*views, place, place + 8, labels, ids)


def steps(learner, count, *, relabel=False, weight=None):
    """Return the weights after each of some steps; the first entry holds those before."""
    engine = build_engine(learner, CPU, World())
    seen = [copy.deepcopy(learner.model.state_dict())]
    weight = learner.config.lambda_weight if weight is None else weight
    for number in range(count):
        batch = batch_of(number)
        if relabel:
            batch = batch._replace(labels=(batch.labels + 1) % 5)
        train_step(engine, batch, weight, number)
        seen.append(copy.deepcopy(learner.model.state_dict()))
    return seen


def same(one, other, names=None):
    return all(torch.equal(one[n], other[n]) for n in (names or one))


@pytest.mark.parametrize("mode", ["global", "dense", "joint"])
def test_lambda_0_is_supervised_training(mode):
    none, zero = learner_of(cl_mode="none"), learner_of(cl_mode=mode, lambda_weight=0)
    assert zero.contrast is None
    assert list(zero.model.heads) == []
    assert same(steps(none, 3)[-1], steps(zero, 3)[-1])


@pytest.mark.parametrize("keys", ["shared", "momentum"])
@pytest.mark.parametrize("mode", ["global", "dense", "joint"])
def test_at_lambda_1_labels_teach_the_probe_and_nothing_else(mode, keys):
    fields = {"cl_mode": mode, "lambda_weight": 1, "key_encoder": keys, "grad_clip": 0.1}
    before, *_, after = steps(learner_of(**fields), 3)
    *_, relabelled = steps(learner_of(**fields), 3, relabel=True)
    for name, value in after.items():
        taught = name in ("backbone.head.weight", "backbone.head.bias")
        assert torch.equal(value, relabelled[name]) is not taught, name
    for learned in (
        "backbone.patch_embed.proj.weight",
        f"heads.{'global' if mode == 'global' else 'dense'}.0.weight",
    ):
        assert not torch.equal(after[learned], before[learned])


def test_at_lambda_1_the_total_is_the_contrastive_loss():
    learner = learner_of(lambda_weight=1)
    losses = learner(batch_of(0), 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(losses.total, losses.contrastive)
    logits = learner.model(batch_of(0).view1).logits
    torch.testing.assert_close(losses.classification, F.cross_entropy(logits, batch_of(0).labels))


def test_a_temperature_is_learned_and_ends_at_its_bound():
    learner = learner_of(
        cl_mode="dense", learnable_temp=True, learning_rate=0.5, key_encoder="shared"
    )
    engine = build_engine(learner, CPU, World())
    seen = [0.2]
    for number in range(12):
        train_step(engine, batch_of(number), 0.5, number)
        seen.append(learner.contrast.temperature().item())
    # The first step of Adam has the length of the learning rate: no decay is added to it.
    assert abs(math.log(seen[1] / 0.2)) == pytest.approx(0.5, rel=1e-4)
    assert all(0.0099 < t < 1.0001 for t in seen)
    assert {round(t, 4) for t in seen} & {0.01, 1.0}


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_lambda_rises_with_the_run_only_when_it_is_adaptive(progress):
    constant = RunConfig(lambda_weight=0.6)
    rising = RunConfig(lambda_weight=0.6, contrastive_weight_adaptive=True)
    assert contrastive_weight(constant, progress) == 0.6
    assert contrastive_weight(rising, progress) == pytest.approx(0.6 * progress)


def test_a_geometry_step_pulls_at_the_patches_that_show_the_same_place():
    learner = learner_of(
        cl_mode="dense", correspondence_features="geometry", lambda_weight=1,
        exclude_same_image=False,
    )  # fmt: skip
    # View 2 shows what is 8 pixels, one patch, to the right and below: patch (r, c) of view 1 is
    # patch (r − 1, c − 1) there.
    batch = batch_of(0)
    queue = learner.contrast.queues["dense"].features.double().clone()
    losses = learner(batch, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        head = learner.model.heads["dense"]
        queries, keys = (
            F.normalize(head(learner.model(view).patches).double(), dim=-1)
            for view in (batch.view1, batch.view2)
        )
    total = []
    for picture in range(4):
        for row in range(1, 4):
            for column in range(1, 4):
                query = queries[picture, 4 * row + column]
                positive = query @ keys[picture, 4 * (row - 1) + column - 1] / 0.2
                scores = torch.cat([positive[None], queue @ query / 0.2])
                total.append(scores.logsumexp(0) - positive)
    assert losses.contrastive.item() == pytest.approx(torch.stack(total).mean().item(), rel=1e-5)


def test_a_rising_lambda_is_no_probe_even_when_it_ends_at_1():
    learner = learner_of(lambda_weight=1, contrastive_weight_adaptive=True)
    assert not learner.model.linear_probe
    losses = learner(batch_of(0), 0.25, torch.Generator().manual_seed(0))
    wanted = 0.75 * losses.classification + 0.25 * losses.contrastive
    torch.testing.assert_close(losses.total, wanted)


def test_the_classification_loss_is_that_of_both_views():
    learner, batch = learner_of(cl_mode="none"), batch_of(0)
    losses = learner(batch, 0.0, torch.Generator())
    each = [
        F.cross_entropy(learner.model(view).logits, batch.labels)
        for view in (batch.view1, batch.view2)
    ]
    torch.testing.assert_close(losses.total, (each[0] + each[1]) / 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_several_classes_have_a_binary_cross_entropy_each_also_mixed(smoothing):
    learner = learner_of(cl_mode="none", label_smoothing=smoothing)
    batch, classes = batch_of(0), learner.model.backbone.num_classes
    several = F.one_hot(batch.labels, classes) | F.one_hot((batch.labels + 1) % classes, classes)
    batch = batch._replace(labels=several.to(torch.uint8))
    losses = learner(batch, 0.0, torch.Generator(), mixed=0.7)
    neighbor = several[[1, 0, 3, 2]]
    total, best = [], []
    for view in (batch.view1, batch.view2):
        logits = learner.model(view).logits.double()
        for truth, share in ((several, 0.7), (neighbor, 0.3)):
            wanted = truth.double() * (1 - smoothing) + smoothing / 2
            each = -(wanted * logits.sigmoid().log() + (1 - wanted) * (-logits).sigmoid().log())
            total.append(share * each.sum(dim=1).mean() / 2)
        best.append(several.gather(1, logits.argmax(dim=1, keepdim=True)).double().mean())
    assert losses.total.item() == pytest.approx(sum(total).item(), rel=1e-5)
    assert losses.top1.item() == pytest.approx(best[0].item()), "of view 1"


def test_joint_with_dense_weight_0_is_global_training():
    joint = learner_of(cl_mode="joint", joint_dense_weight=0, key_encoder="momentum")
    alone = learner_of(cl_mode="global", key_encoder="momentum")
    assert same(steps(joint, 3)[-1], steps(alone, 3)[-1])


def test_the_moving_average_is_the_closed_form_over_weights_and_buffers():
    learner = learner_of(cl_mode="joint", key_encoder="momentum", momentum=0.9)
    for network in (learner.model, learner.averaged):
        network.register_buffer("drift", torch.zeros(3))
        network.register_buffer("number", torch.tensor(0))
    engine = build_engine(learner, CPU, World())
    history = [copy.deepcopy(learner.model.state_dict())]
    for number in range(5):
        learner.model.drift += number + 1.0
        learner.model.number += 1
        train_step(engine, batch_of(number), 0.5, number)
        history.append(copy.deepcopy(learner.model.state_dict()))
    averaged = learner.averaged.state_dict()
    assert averaged.pop("number") == 5, "whole numbers have no mean: they are copied"
    assert {"drift", "heads.global.0.weight", "backbone.head.weight"} <= averaged.keys()
    for name, value in averaged.items():
        wanted = 0.9**5 * history[0][name].double()
        for age, weights in enumerate(reversed(history[1:])):
            wanted = wanted + 0.1 * 0.9**age * weights[name].double()
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)


def test_momentum_keys_come_from_the_average_and_carry_no_gradient():
    learner = learner_of(key_encoder="momentum", momentum=0.9)
    with torch.no_grad():
        for parameter in learner.averaged.parameters():
            parameter.mul_(1.5)
    batch = batch_of(0)
    losses = learner(batch, 0.5, torch.Generator().manual_seed(0))
    losses.total.backward()
    learner.contrast.enqueue([losses.keys])
    keys = learner.averaged
    patches = keys(batch.view2).patches
    wanted = F.normalize(keys.heads["dense"](patches), dim=-1)
    for row, entry in enumerate(learner.contrast.queues["dense"].features[:12]):
        assert (wanted[row // 3] - entry).abs().amax(-1).min() < 1e-6
    assert all(parameter.grad is None for parameter in keys.parameters())


def test_momentum_keys_are_the_same_in_two_passes_with_drop_path():
    learner = learner_of(cl_mode="joint", key_encoder="momentum", drop_path=0.3)
    for module in (learner, learner.eval().train()):
        first, again = (
            module(batch_of(0), 0.5, torch.Generator().manual_seed(0)) for _ in range(2)
        )
        assert not torch.equal(first.total, again.total), "the queries lose paths"
        for kind, (keys, ids) in first.keys.items():
            assert torch.equal(keys, again.keys[kind][0])
            assert torch.equal(ids, again.keys[kind][1])


def test_gradient_checkpointing_changes_nothing():
    for mode in ("none", "joint"):
        plain, again = (
            learner_of(cl_mode=mode),
            learner_of(cl_mode=mode, gradient_checkpointing=True),
        )
        assert again.model.backbone.grad_checkpointing
        for one, other in zip(steps(plain, 3), steps(again, 3), strict=True):
            for name, value in one.items():
                torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-7)


def test_gradient_balance_equals_two_backward_passes():
    learner, batch = learner_of(cl_mode="joint"), batch_of(0)
    before = copy.deepcopy(learner.contrast.state_dict())
    numbers = gradient_balance(learner, batch, 0.3)
    assert same(learner.contrast.state_dict(), before)
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    flat = {}
    for part in ("contrastive", "classification"):
        losses = learner(batch, 0.3, torch.Generator().manual_seed(0))
        learner.model.zero_grad()
        getattr(losses, part).backward()
        grads = [
            torch.zeros_like(p) if p.grad is None else p.grad
            for p in learner.model.backbone.parameters()
        ]
        flat[part] = nn.utils.parameters_to_vector(grads).double()
    ours, theirs = 0.3 * flat["contrastive"].norm(), 0.7 * flat["classification"].norm()
    assert numbers["gradient_share"] == pytest.approx(float(ours / (ours + theirs)), rel=1e-4)
    cosine = F.cosine_similarity(flat["contrastive"], flat["classification"], dim=0)
    assert numbers["gradient_cosine"] == pytest.approx(float(cosine), rel=1e-4)
