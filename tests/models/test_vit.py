"""The network: tokens counted by timm, heads in the right place, clear error messages."""

import pytest
import torch

from densevit.config.model_names import check_names, image_size, patch_size
from densevit.config.run_config import RunConfig
from densevit.models.vit import DenseViT, check_model
from densevit.utils.errors import UserError

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


def test_check_model_tells_the_size_without_building():
    assert check_model(config()) == 32
    big = RunConfig(model_name="vit_giant_patch14_224")
    assert check_model(big) == 224  # 4 GB of weights, were they allocated


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"model_name": "resnet18", "model_kwargs": {}}, "resnet18 is not a Vision Transformer"),
        (
            {"model_kwargs": {**SMALL, "dpth": 1}},
            "model_kwargs: dpth: unknown to vit_tiny_patch16_224; did you mean 'depth'?",
        ),
        ({"model_kwargs": {**SMALL, "img_size": 30}}, "divisible by the patch size 8"),
        ({"model_kwargs": {**SMALL, "img_size": [32, 64]}}, "must be square"),
        ({"model_kwargs": {**SMALL, "num_classes": 3}}, "num_classes follows from the data set"),
        ({"model_kwargs": {**SMALL, "num_heads": 5}}, "model_kwargs: timm cannot build"),
        ({"sampled_patches": 17}, "sampled_patches: 17 is more than the 16 patches"),
        ({"query_patches": 17}, "query_patches: 17 is more than the 16 patches"),
        ({"cl_mode": "joint", "sampled_patches": 17}, "sampled_patches: 17 is more than"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_line(fields, wanted):
    with pytest.raises(UserError) as error:
        check_model(config(**fields))
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"cl_mode": "global"},
        {"dense_negatives": "pooled"},
        {"cl_mode": "joint", "joint_dense_weight": 0},
        {"lambda_weight": 0},
    ],
    ids=str,
)
def test_a_number_that_means_nothing_to_the_run_is_no_mistake(fields):
    assert check_model(config(sampled_patches=99, **fields)) == 32


def test_names_are_known_without_timm():
    check_names(RunConfig(model_name="vit_small_patch16_224.augreg_in21k"), str)
    check_names(RunConfig(model_name="deit3_base_patch16_224"), str)
    assert image_size(RunConfig(model_name="vit_base_patch32_384.x")) == 384
    assert patch_size(RunConfig(model_name="vit_base_patch32_384.x")) == 32
    assert image_size(RunConfig(model_name="vit_so150m")) is None
