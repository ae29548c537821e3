"""The network: tokens counted by timm, heads in the right place, clear error messages."""

import pytest
import torch

from densevit.config.run_config import RunConfig
from densevit.models.vit import DenseViT

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def config(**fields):
    return RunConfig(**{"model_kwargs": SMALL, "sampled_patches": 4, **fields})


@pytest.mark.parametrize(
    "kwargs",
    [SMALL, {**SMALL, "reg_tokens": 4}, {**SMALL, "class_token": False, "global_pool": "avg"}],
    ids=["cls", "registers", "no cls"],
)
def test_prefix_tokens_are_no_patches(kwargs):
    model = DenseViT(config(model_kwargs=kwargs), classes=5).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = model(images)
    features = model.backbone.forward_features(images)
    assert tokens.patches.shape == (2, 16, 24)
    assert torch.equal(tokens.patches, features[:, -16:])
    assert torch.equal(tokens.logits, model.backbone(images))
    has_cls = kwargs.get("class_token", True)
    wanted = features[:, 0] if has_cls else features.mean(1)
    torch.testing.assert_close(tokens.image, wanted)


@pytest.mark.parametrize(
    ("fields", "heads"),
    [
        ({"cl_mode": "none"}, []),
        ({"cl_mode": "global"}, ["global"]),
        ({"cl_mode": "dense"}, ["dense"]),
        ({"cl_mode": "joint"}, ["global", "dense"]),
        ({"cl_mode": "joint", "joint_dense_weight": 0}, ["global"]),
        ({"cl_mode": "joint", "lambda_weight": 0}, []),
    ],
    ids=str,
)
def test_each_loss_has_a_projection_head_of_its_own(fields, heads):
    model = DenseViT(config(dense_dim=7, **fields), classes=2)
    assert list(model.heads) == heads
    for head in model.heads.values():
        shapes = [tuple(p.shape) for p in head.parameters()]
        assert shapes == [(2048, 24), (2048,), (7, 2048), (7,)]


def test_arms_of_one_seed_share_their_backbone():
    weights = []
    for mode in ("none", "global", "dense", "joint"):
        torch.manual_seed(3)
        weights.append(DenseViT(config(cl_mode=mode), classes=5).backbone.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())
