"""The mechanics of a step: parts of a batch, precision, skipped steps, and learning rates."""

import copy
import math
from functools import partialmethod

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from densevit.config.run_config import RunConfig
from densevit.data.batch import Batch
from densevit.train.learner import build_learner
from densevit.train.mixup import mix, mixup_share
from densevit.train.step import build_engine, train_step
from densevit.utils.distributed import World
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from timm.optim import create_optimizer_v2  # noqa: E402

SMALL = {
    "model_kwargs": {
        "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2,
    },
    "batch_size": 8, "learning_rate": 1e-3, "queue_size": 50, "sampled_patches": 3,
    "dense_dim": 16, "projection_hidden_dim": 32,
}  # fmt: skip
CPU = torch.device("cpu")


def engine_of(**fields):
    torch.manual_seed(0)
    learner = build_learner(RunConfig(**{**SMALL, **fields}), 5, CPU)
    learner.train()
    return build_engine(learner, CPU, World())


def batch_of(seed, size=8):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(size, 3, 32, 32, generator=generator) for _ in range(2)]
    sides = torch.tensor([[0.0, 0, 32, 32]]).repeat(size, 1)
    shift = torch.randint(-20, 20, (size, 1), generator=generator)  # some views do not overlap much
    labels = torch.randint(5, (size,), generator=generator)
    return Batch(*views, sides, sides + shift, labels, torch.arange(size) + size * seed)


def weights(engine):
    return copy.deepcopy(engine.learner.state_dict())


def assert_close(one, other, rtol=1e-4):
    """Check that two engines have learned the same: queues, and the mean gradients of the weights.

    The weights themselves show less: where a gradient is only a rounding error, such as that of the
    bias of attention's keys, Adam makes a whole step of it.
    """
    for kind in one.learner.contrast.queues if one.learner.contrast else ():
        queues = (e.learner.contrast.queues[kind].state_dict() for e in (one, other))
        for a, b in zip(*(q.values() for q in queues), strict=True):
            torch.testing.assert_close(a, b, rtol=rtol, atol=2e-5)
    moments = (e.optimizer.state_dict()["state"] for e in (one, other))
    for a, b in zip(*(m.values() for m in moments), strict=True):
        largest = float(a["exp_avg"].abs().max())
        torch.testing.assert_close(
            a["exp_avg"], b["exp_avg"], rtol=rtol, atol=rtol * largest + 1e-7
        )


MODES = [
    {"cl_mode": "none"},
    {"cl_mode": "global", "label_smoothing": 0.1},
    {"cl_mode": "dense", "query_patches": 5, "sampling_strategy": "diverse", "mixup": 0.5},
    {"cl_mode": "dense", "correspondence_features": "random", "sampling_strategy": "hardest"},
    {"cl_mode": "joint", "correspondence_features": "geometry", "query_patches": 7},
    {"cl_mode": "joint", "lambda_weight": 1.0, "key_encoder": "momentum", "momentum": 0.9},
]


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_batch_in_parts_is_the_batch(mode, parts):
    whole, split = engine_of(**mode), engine_of(**mode, grad_accumulation=parts)
    for step in range(3):
        one, other = (train_step(e, batch_of(step), 0.5, step) for e in (whole, split))
        for name, value in one.items():
            # In a geometry batch, the loss of a part is its share of the batch's loss.
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert_close(whole, split, rtol=1e-3)


def test_parts_of_a_batch_without_any_true_match_have_loss_zero():
    fields = {"cl_mode": "dense", "correspondence_features": "geometry", "grad_accumulation": 2}
    batch = batch_of(0)
    numbers = train_step(engine_of(**fields), batch._replace(place2=batch.place1 + 100), 0.5, 0)
    assert (float(numbers["contrastive_loss"]), float(numbers["counted"])) == (0, 1)


def test_what_is_drawn_depends_on_seed_and_step_alone():
    fields = {"cl_mode": "dense", "query_patches": 5, "drop_path": 0.3}
    first, second = engine_of(**fields), engine_of(**fields)
    train_step(first, batch_of(0), 0.5, 7)
    torch.rand(13)
    train_step(second, batch_of(0), 0.5, 7)
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(),
                                                 strict=True))  # fmt: skip
    third = engine_of(**fields)
    train_step(third, batch_of(0), 0.5, 8)
    assert not torch.equal(
        third.learner.contrast.queues["dense"].features,
        first.learner.contrast.queues["dense"].features,
    )


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_each_process_drops_paths_of_its_own(rate):
    losses = []
    for rank in range(2):
        engine = engine_of(cl_mode="none", drop_path=rate)
        engine.world = World(rank, 2)
        losses.append(float(train_step(engine, batch_of(0, 4), 0.0, 0)["loss"]))
    assert (losses[0] == losses[1]) is (rate == 0)


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_without_finite_numbers_changes_nothing_but_the_count(precision, bad):
    engine = engine_of(
        cl_mode="joint", precision=precision, learnable_temp=True, key_encoder="shared"
    )
    steps = 1
    numbers = train_step(engine, batch_of(0), 0.5, 0)
    while not numbers["counted"]:  # float16 searches for its loss scale
        numbers = train_step(engine, batch_of(steps), 0.5, steps)
        steps += 1
    skipped = int(engine.skipped)
    before, moments = weights(engine), copy.deepcopy(engine.optimizer.state_dict()["state"])
    wrong = batch_of(50)
    wrong.view1[3, 0, 0, 0] = bad
    wrong.view2[3, 0, 0, 0] = bad
    numbers = train_step(engine, wrong, 0.5, 50)
    assert {float(n) for n in numbers.values()} == {0.0}
    assert (int(engine.skipped), int(engine.in_a_row)) == (skipped + 1, 1)
    assert engine.scaler.get_scale() == 1 or precision == "fp16"
    after = weights(engine)
    for name, value in before.items():
        if "queues" not in name:
            assert torch.equal(after[name], value), name
    for key, held in engine.optimizer.state_dict()["state"].items():
        assert all(torch.equal(held[n], v) for n, v in moments[key].items())
    for queue in engine.learner.contrast.queues.values():
        assert queue.features.isfinite().all()
        norms = queue.features.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-5, atol=1e-5)
        assert (queue.image_ids != 403).all(), "the picture that went wrong"
    assert float(train_step(engine, batch_of(51), 0.5, 51)["counted"]) == 1.0 or precision == "fp16"


def test_an_infinite_loss_is_not_counted_even_when_its_gradient_is_finite():
    engine, batch = engine_of(cl_mode="none"), batch_of(0)
    with torch.no_grad():  # one class is impossible: −log 0, whose slope is 0 − 1
        engine.learner.model.backbone.head.bias[batch.labels[0]] = -math.inf
    numbers = train_step(engine, batch, 0.0, 0)
    assert all(p.grad.isfinite().all() for p in engine.learner.model.parameters())
    assert {float(n) for n in numbers.values()} == {0.0}
    assert (int(engine.skipped), int(engine.in_a_row)) == (1, 1)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_an_engine_that_is_resumed_goes_on_as_the_one_before(precision):
    fields = {"cl_mode": "joint", "key_encoder": "momentum", "learnable_temp": True}
    wrong = batch_of(50)
    wrong.view1[:] = math.nan
    before, after = (engine_of(**fields, precision=precision) for _ in range(2))
    for step, batch in enumerate((batch_of(0), wrong, wrong)):  # between bad steps
        train_step(before, batch, 0.5, step)
    after.load_state(copy.deepcopy(before.state()))
    for step, batch in enumerate((wrong, batch_of(1)), start=3):
        for engine in (before, after):
            train_step(engine, batch, 0.5, step)
        assert [int(n) for n in after.state()["skipped"]] == [
            int(n) for n in before.state()["skipped"]
        ]
    assert int(after.most_in_a_row) >= 3
    assert after.scaler.state_dict() == before.scaler.state_dict()
    for got, wanted in zip(weights(after).values(), weights(before).values(), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 3e-2), ("fp16", 5e-3)])
@pytest.mark.parametrize("mode", ["none", "dense"])
def test_lower_precision_comes_near_and_keeps_losses_in_float32(mode, precision, bound):
    exact, lower = engine_of(cl_mode=mode), engine_of(cl_mode=mode, precision=precision)
    if precision == "fp16":  # a scale that needs no search
        lower.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    one, other = (train_step(e, batch_of(0), 0.5, 0) for e in (exact, lower))
    assert other["counted"] == 1
    assert other["loss"] != one["loss"], "it is rounded"
    for name, value in one.items():
        assert other[name].dtype == torch.float32
        if name not in ("top1", "counted"):
            assert float(other[name]) == pytest.approx(float(value), rel=bound)
    kept = {p.dtype for p in lower.learner.parameters()}
    assert kept == {torch.float32}


def test_float16_scales_its_loss_and_still_learns():
    engine = engine_of(cl_mode="none", precision="fp16", grad_clip=0)
    batch, losses = batch_of(0), []
    for step in range(40):
        numbers = train_step(engine, batch, 0.5, step)
        if numbers["counted"]:
            losses.append(float(numbers["loss"]))
    assert len(losses) > 20
    assert int(engine.skipped) == 40 - len(losses) > 0
    assert engine.scaler.get_scale() == 2**16 / 2 ** int(engine.skipped)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_clipping_bounds_the_gradient_before_the_optimiser_sees_it(precision):
    engine = engine_of(cl_mode="none", grad_clip=1e-3, precision=precision)
    if precision == "fp16":  # a scale that needs no search
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    train_step(engine, batch_of(0), 0.5, 0)
    norm = nn.utils.get_total_norm([p.grad for p in engine.learner.model.parameters()])
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_the_norm_before_clipping_and_the_share_of_clipped_steps_are_logged():
    plain = engine_of(cl_mode="none", grad_clip=0.0)
    logged = train_step(plain, batch_of(0), 0.5, 0)
    norm = float(nn.utils.get_total_norm([p.grad for p in plain.learner.model.parameters()]))
    assert float(logged["gradient_norm"]) == pytest.approx(norm)
    assert "clipped_share" not in logged
    for limit, share in ((norm * 0.99, 1.0), (norm * 1.01, 0.0)):
        logged = train_step(engine_of(cl_mode="none", grad_clip=limit), batch_of(0), 0.5, 0)
        assert float(logged["gradient_norm"]) == pytest.approx(norm)
        assert float(logged["clipped_share"]) == share


def test_layer_decay_slows_the_lower_blocks_and_not_the_heads():
    engine = engine_of(cl_mode="dense", layer_decay=0.5)
    names = {id(p): n for n, p in engine.learner.model.named_parameters()}
    scales = {
        names[id(p)]: group.get("lr_scale", 1.0)
        for group in engine.optimizer.param_groups for p in group["params"]
    }  # fmt: skip
    assert set(scales) == set(names.values()), "every parameter once"
    # Embedding, two blocks, final norm and head: BEiT's rule, with a half per layer (Bao et al.
    # 2022).
    assert scales["heads.dense.0.weight"] == 1.0
    assert scales["backbone.head.weight"] == 1.0
    blocks = [scales[f"backbone.blocks.{i}.attn.qkv.weight"] for i in (0, 1)]
    assert blocks[0] == blocks[1] / 2 < 1
    assert scales["backbone.patch_embed.proj.weight"] == blocks[0] / 2


def test_a_probe_is_not_clipped_with_the_rest():
    heads = []
    for clip in (0.0, 1e-3):
        engine = engine_of(cl_mode="dense", lambda_weight=1.0, grad_clip=clip)
        train_step(engine, batch_of(0), 1.0, 0)
        heads.append(engine.learner.model.backbone.head.weight.grad)
    assert torch.equal(*heads)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_each_weight_has_the_decay_and_rate_of_timm_s_own_optimiser(layer_decay):
    engine = engine_of(cl_mode="dense", layer_decay=layer_decay, weight_decay=0.1)
    model = engine.learner.model

    def groups(optimizer):
        return {
            id(p): (group["weight_decay"], group.get("lr_scale", 1.0))
            for group in optimizer.param_groups for p in group["params"]
        }  # fmt: skip

    timms = create_optimizer_v2(
        model.backbone, "adamw", lr=1e-3, weight_decay=0.1,
        layer_decay=layer_decay if layer_decay < 1 else None,
    )  # fmt: skip
    ours, wanted = groups(engine.optimizer), groups(timms)
    for name, parameter in model.backbone.named_parameters():
        assert ours[id(parameter)] == wanted[id(parameter)], name
    assert ours[id(model.backbone.pos_embed)][0] == ours[id(model.backbone.cls_token)][0] == 0
    for name, parameter in model.heads.named_parameters():
        assert ours[id(parameter)] == (0 if name.endswith(".bias") else 0.1, 1.0), name


def test_mixup_mixes_pictures_and_losses_alike():
    engine = engine_of(cl_mode="none", mixup=0.4, label_smoothing=0.1)
    share = mixup_share(engine.config, 3)
    assert 0 < share < 1
    assert share == mixup_share(engine.config, 3) != mixup_share(engine.config, 4)
    batch = batch_of(1)
    model = copy.deepcopy(engine.learner.model)
    numbers = train_step(engine, batch, 0.5, 3)
    pictures = torch.cat([
        share * view + (1 - share) * view[[1, 0, 3, 2, 5, 4, 7, 6]] for view in (batch.view1, batch.view2)
    ])  # fmt: skip
    logits = model(pictures).logits.double().log_softmax(dim=1)
    own, other = (
        F.one_hot(x, 5).double() for x in (batch.labels, batch.labels[[1, 0, 3, 2, 5, 4, 7, 6]])
    )
    target = (share * own + (1 - share) * other).repeat(2, 1) * 0.9 + 0.1 / 5
    assert float(numbers["loss"]) == pytest.approx(
        float(-(target * logits).sum(dim=1).mean()), rel=1e-5
    )
    right = (logits[:8].argmax(dim=1) == batch.labels).sum()  # of view 1, by its own labels
    assert float(numbers["top1"]) == 100 * right / 8 > 0
    assert mixup_share(RunConfig(), 3) == 1.0
    assert mix(batch, 1.0) is batch


def test_mixed_pictures_keep_their_majority_if_they_are_contrasted():
    shares = {
        mode: np.array(
            [mixup_share(RunConfig(cl_mode=mode, mixup=0.4), step) for step in range(40)]
        )
        for mode in ("none", "dense")
    }
    assert (shares["none"] < 0.5).any()
    assert np.array_equal(shares["dense"], np.maximum(shares["none"], 1 - shares["none"]))


def test_drop_path_reaches_the_network():
    engine = engine_of(cl_mode="none", drop_path=0.3)
    assert engine.learner.model.backbone.blocks[1].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.fixture
def shallow():
    """Return the fields of a network of one block; discard compiled code before and after."""
    torch.compiler.reset()
    yield {"model_kwargs": {**SMALL["model_kwargs"], "depth": 1}}
    torch.compiler.reset()


def test_compiled_networks_learn_the_same(monkeypatch, shallow):
    # torch.compile without the code generation of Inductor, which takes a compiler half a minute.
    backend = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    fields = {**shallow, "cl_mode": "joint", "key_encoder": "momentum"}
    plain, compiled = engine_of(**fields), engine_of(**fields, compile=True)
    for step in range(2):
        for engine in (plain, compiled):
            train_step(engine, batch_of(step), 0.5, step)
    assert backend.frame_count == 2, "the network and its moving average, each once"
    assert_close(plain, compiled, rtol=1e-3)


@pytest.mark.slow  # a minute of a processor
# Plain loops compile fastest; another process would have to import torch again.
@torch._inductor.config.patch({"cpp.simdlen": 1, "compile_threads": 1})
def test_inductor_takes_the_network(shallow):
    plain, compiled = (
        engine_of(**shallow, cl_mode="none", compile=on).learner.model for on in (False, True)
    )
    outputs = [model(batch_of(0).view1) for model in (plain, compiled)]
    for output in outputs:
        output.logits.square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0])
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


class Waits(TorchDispatchMode):
    """Count the operators whose result the host waits for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_step_does_not_wait_for_the_device(mode):
    # On a CPU the loss checks whether anything is excluded; on a GPU it does not.
    engine = engine_of(**mode, exclude_same_image=False, grad_accumulation=2)
    train_step(engine, batch_of(0), 0.5, 0)
    with Waits() as waits:
        train_step(engine, batch_of(1), 0.5, 1)
    assert waits.seen == []
    with Waits() as waits:  # it detects such operators
        float(engine.skipped)
    assert waits.seen == ["_local_scalar_dense"]
