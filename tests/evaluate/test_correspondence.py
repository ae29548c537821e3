"""Matches of networks with known features, compared with geometry and calculations by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY
from torch import nn
from torch.nn import functional as F

from densevit.config.run_config import RunConfig
from densevit.contrast.matching import match_quality
from densevit.data.image import LazyImage
from densevit.evaluate.attention import attention, attention_weights, depth
from densevit.evaluate.correspondence import Views, correspondences, patch_similarity, views_of
from densevit.models.vit import DenseViT
from densevit.utils.errors import UserError

SIDE = 32


class Fake(nn.Module):
    """A network with a grid and without weights that matter."""

    def __init__(self, grid):
        super().__init__()
        self.grid, self.heads, self.weight = grid, {}, nn.Parameter(torch.zeros(1))

    def preprocessing(self):
        return {"mean": (0.0,) * 3, "std": (1.0,) * 3}


class Colors(Fake):
    """The feature of a patch is its mean color: its content, at any place."""

    def forward(self, images):
        means = F.adaptive_avg_pool2d(images, self.grid)  # (B, 3, rows, columns)
        return SimpleNamespace(patches=means.flatten(2).transpose(1, 2))


class Given(Fake):
    """Features (B, N, E) that a test provides."""

    def __init__(self, grid, features):
        super().__init__(grid)
        self.features = torch.tensor(features, dtype=torch.float32)

    def forward(self, images):
        return SimpleNamespace(patches=self.features[: len(images)])


def noise(side=SIDE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def picture(width=60, height=50, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return LazyImage("noise.png", Image.fromarray(pixels), (width, height))


def views(first, second, place1, place2):
    return Views(np.stack([first, second]), np.array([place1, place2], dtype=np.float32))


def vit(**changes):
    torch.manual_seed(0)
    return DenseViT(RunConfig(**{**TINY, **changes}), classes=3)


def test_identical_views_match_each_patch_with_itself():
    whole = [0, 0, 40, 40]
    found = correspondences(
        Colors((4, 4)), views(noise(), noise(), whole, whole), features="backbone"
    )
    assert found.partner.tolist() == found.truth.tolist() == list(range(16))
    assert found.right.all()
    assert found.precision == 1
    assert found.similarity == pytest.approx(np.ones(16), abs=1e-6)


def test_a_flipped_view_matches_each_patch_with_the_mirrored_one():
    both = views(noise(), noise()[:, ::-1], [0, 0, 40, 40], [40, 0, 0, 40])
    found = correspondences(Colors((4, 4)), both, features="backbone")
    mirrored = np.arange(16).reshape(4, 4)[:, ::-1].ravel().tolist()
    assert found.partner.tolist() == found.truth.tolist() == mirrored
    assert found.precision == 1


def test_the_record_against_a_hand_calculation():
    # Patches 0 1 2 of a row; view 2 shows the right two thirds and the same width beyond. Features
    # are directions in degrees, of different lengths.
    angles = [[0, 50, 100, 180, 240, 300], [60, 170, 290, 10, 95, 200]]
    features = [
        [[k * math.cos(math.radians(a)), k * math.sin(math.radians(a))] for k, a in enumerate(v, 1)]
        for v in angles
    ]
    both = views(noise(), noise(), [0, 0, 30, 20], [10, 0, 40, 20])
    found = correspondences(Given((2, 3), features), both, features="backbone")
    assert found.truth.tolist() == [-1, 0, 1, -1, 3, 4]
    assert found.partner.tolist() == [3, 0, 4, 1, 5, 2]
    gaps = [10, 10, 5, 10, 40, 10]
    assert found.similarity == pytest.approx(np.cos(np.radians(gaps)), abs=1e-6)
    # 4 is the patch below 1; 5 is two columns from 3, and 2 is one column and one row from 4.
    assert found.right.tolist() == [False, True, True, False, False, True]
    assert found.precision == 3 / 4
    assert found.grid == (2, 3)


def test_without_overlap_nothing_is_right():
    both = views(noise(), noise(), [0, 0, 10, 10], [20, 0, 30, 10])
    found = correspondences(Colors((4, 4)), both, features="backbone")
    assert not found.right.any()
    assert math.isnan(found.precision)


@pytest.mark.parametrize("features", ["backbone", "dense"])
def test_a_vit_is_asked_for_its_normalised_views(features):
    model = vit()
    for seed in range(4):
        both = views_of(picture(seed=seed), SIDE, seed)
        found = correspondences(model, both, features=features)
        images = (both.pixels / 255 - model.preprocessing()["mean"]) / model.preprocessing()["std"]
        images = torch.tensor(images, dtype=torch.float32).permute(0, 3, 1, 2)
        with torch.no_grad():
            patches = model.eval()(images).patches
            patches = model.heads["dense"](patches) if features == "dense" else patches
        one, two = patches.double().numpy()
        norms = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(two, axis=1)
        cosine = one @ two.T / norms
        assert found.partner.tolist() == cosine.argmax(axis=1).tolist()
        assert found.similarity == pytest.approx(cosine.max(axis=1), abs=1e-5)
        quality = match_quality(
            torch.tensor(found.partner[None]), torch.tensor(found.truth[None]), model.grid
        )
        assert found.precision == pytest.approx(float(quality.precision))


def test_the_mode_of_each_module_and_the_gradients_stay():
    model = vit(drop_path=0.5).train()
    model.heads.eval()
    both = views_of(picture(), SIDE)
    before = [module.training for module in model.modules()]
    found = [correspondences(model, both, features="dense") for _ in range(2)]
    assert (found[0].similarity == found[1].similarity).all()  # training drops blocks at random
    assert [module.training for module in model.modules()] == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_dense_features_want_a_dense_head():
    with pytest.raises(UserError, match="features: dense: this run has no dense head"):
        correspondences(vit(cl_mode="none"), views_of(picture(), SIDE), features="dense")


def test_patch_similarity_is_the_cosine_to_one_patch():
    features = [[[1, 0], [0, 2], [3, 3], [-1, 0], [0, -4], [2, 0]]]
    model = Given((2, 3), features)
    half = math.sqrt(0.5)
    seen = patch_similarity(model, noise(), 2)
    assert seen.tolist() == [pytest.approx([half, half, 1]), pytest.approx([-half, -half, half])]
    with pytest.raises(ValueError, match="patch must be from 0 to 5, got 6"):
        patch_similarity(model, noise(), 6)


def by_hand(model, pixels, block):
    """Return the softmax of queries times keys, in double precision: (heads, tokens, tokens)."""
    seen = []
    layer = model.backbone.blocks[block]
    hook = layer.attn.qkv.register_forward_hook(lambda _, given, got: seen.append((*given, got)))
    normal = (pixels[None] / 255 - model.preprocessing()["mean"]) / model.preprocessing()["std"]
    with torch.no_grad():
        model.eval()(torch.tensor(normal, dtype=torch.float32).permute(0, 3, 1, 2))
    hook.remove()
    entering, _ = seen[0]
    x, weight, bias = (
        each.detach().double().numpy()
        for each in (entering[0], layer.attn.qkv.weight, layer.attn.qkv.bias)
    )
    width, heads = x.shape[1], layer.attn.num_heads
    each = width // heads
    found = []
    for head in range(heads):
        rows = slice(head * each, (head + 1) * each)
        query = x @ weight[:width][rows].T + bias[:width][rows]
        key = x @ weight[width : 2 * width][rows].T + bias[width : 2 * width][rows]
        powers = np.exp(query @ key.T / math.sqrt(each))
        found.append(powers / powers.sum(axis=1, keepdims=True))
    return np.stack(found)


def attending(seed=0, **kwargs):
    """Return a network with uneven attention, unlike that of new weights."""
    model = vit(model_kwargs={**TINY["model_kwargs"], **kwargs})
    generator = torch.Generator().manual_seed(seed)
    for block in model.backbone.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.5, generator=generator)
        nn.init.normal_(block.attn.qkv.bias, std=0.5, generator=generator)
    return model


WITHOUT = {"class_token": False, "global_pool": "avg"}


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(
    ("kwargs", "prefix"),
    [({}, 1), ({"reg_tokens": 2}, 3), (WITHOUT, 0), ({**WITHOUT, "reg_tokens": 2}, 2)],
)
def test_attention_is_the_softmax_of_queries_and_keys(kwargs, prefix, block):
    model = attending(**kwargs)
    weights = attention_weights(model, noise(), block)
    wanted = by_hand(model, noise(), block)
    assert wanted.shape == (2, 16 + prefix, 16 + prefix)
    assert wanted.max() > 0.3
    assert weights == pytest.approx(wanted, abs=1e-5)
    assert weights.sum(axis=2) == pytest.approx(np.ones((2, 16 + prefix)), abs=1e-5)
    # The first token represents the image, or the mean of its patches if there is no CLS token.
    queries = [0] if "class_token" not in kwargs else range(prefix, prefix + 16)
    of_picture = np.mean([wanted[:, query, prefix:] for query in queries], axis=0)
    seen = attention(model, noise(), block)
    assert seen == pytest.approx(of_picture.reshape(2, 4, 4), abs=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_a_network_that_was_asked_for_its_attention_is_as_before(fused, monkeypatch):
    model = attending(reg_tokens=2).train()
    parts = [block.attn for block in model.backbone.blocks]
    for part in parts:
        part.fused_attn = fused

    def unchanged():
        hooks = [len(part.attn_drop._forward_pre_hooks) for part in parts]
        return hooks == [0, 0] and all(part.fused_attn is fused for part in parts)

    first, again = (attention(model, noise(), 1) for _ in range(2))
    assert (first == again).all()
    assert unchanged()
    assert all(module.training for module in model.modules())

    def broken(features):
        raise RuntimeError("broken")

    monkeypatch.setattr(model.backbone, "forward_head", broken)
    with pytest.raises(RuntimeError, match="broken"):
        attention(model, noise(), 1)
    assert unchanged()


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_a_network_does_not_have(block):
    assert depth(vit()) == 2
    with pytest.raises(UserError, match=f"^block: {block} must be from 0 to 1$"):
        attention(vit(), noise(), block)


# Both add their CLS token after the first blocks.
@pytest.mark.parametrize("name", ["cait_xxs24_224", "convit_tiny"])
def test_what_attends_in_another_way_is_named(name):
    model = vit(model_name=name, model_kwargs={"img_size": 32})
    with pytest.raises(UserError, match=r"^block: 0 of this \w+ has no attention of all tokens"):
        attention(model, noise(), 0)


def test_views_repeat_and_share_a_third_of_the_picture():
    overlaps = []
    for seed in range(25):
        both, again = (views_of(picture(), SIDE, seed) for _ in range(2))
        assert both.pixels.shape == (2, SIDE, SIDE, 3)
        assert (both.pixels == again.pixels).all()
        assert (both.places == again.places).all()
        covered = np.zeros((2, 50, 60), dtype=bool)
        for mask, (x, top, r, bottom) in zip(covered, both.places.astype(int), strict=True):
            mask[top:bottom, min(x, r) : max(x, r)] = True
        overlaps.append(covered.all(axis=0).sum() / covered.any(axis=0).sum())
    assert all(1 / 3 <= overlap < 1 for overlap in overlaps)
    assert len(set(overlaps)) > 15
