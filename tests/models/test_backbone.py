"""What a run's model may be: built by timm without weights, or refused in one line."""

import json

import pytest

from densevit.config.model_names import check_names, image_size, patch_size
from densevit.config.run_config import RunConfig
from densevit.models.backbone import check_model
from densevit.utils.errors import UserError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def config(**fields):
    return RunConfig(**{"model_kwargs": SMALL, "sampled_patches": 4, **fields})


def test_check_model_tells_the_size_without_building():
    assert check_model(config()) == 32
    big = RunConfig(model_name="vit_giant_patch14_224")
    assert check_model(big) == 224  # 4 GB of weights, were they allocated


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (
            {"model_name": "swin_tiny_patch4_window7_224", "model_kwargs": {}},
            "swin_tiny_patch4_window7_224 is a SwinTransformer, not a plain Vision Transformer: the "
            "losses need one token for each patch of the image; use one of timm's vit_*, deit*, "
            "beit*, eva* or cait_*, such as vit_tiny_patch16_224",
        ),
        (
            {"model_name": "swin_tiny_patch4_window7_224"},  # with arguments of a ViT
            "model_name: swin_tiny_patch4_window7_224 is a SwinTransformer, not a plain Vision",
        ),
        (
            {"model_name": "convnext_base", "model_kwargs": {}},
            "convnext_base is a ConvNeXt, not a plain Vision Transformer",
        ),
        ({"model_kwargs": {**SMALL, "in_chans": 1}}, "model_kwargs: in_chans: 1 must be 3"),
        (
            {"model_kwargs": {**SMALL, "checkpoint_path": "w.pt"}},
            "checkpoint_path is the field init_checkpoint",
        ),
        (
            {"model_kwargs": {**SMALL, "pretrained_strict": False}},
            "pretrained_strict is the field init_share",
        ),
        (
            {"model_kwargs": {**SMALL, "pretrained_cfg_overlay": {"file": "w.pt"}}},
            "model_kwargs: pretrained_cfg_overlay names weights; set the field init_checkpoint",
        ),
        (
            {"model_kwargs": {**SMALL, "patch_drop_rate": 0.8}, "key_encoder": "shared"},
            "sampled_patches: 4 is more than the 16 patches that vit_tiny_patch16_224 makes of an "
            "image, of which patch_drop_rate leaves 3",
        ),
        (
            {"model_kwargs": {**SMALL, "patch_drop_rate": 0.8}, "query_patches": 4},
            "query_patches: 4 is more than the 16 patches",
        ),
        (
            {
                "model_kwargs": {**SMALL, "patch_drop_rate": 0.1},
                "correspondence_features": "geometry",
            },
            "model_kwargs: patch_drop_rate: the places of the patches that are left are not known",
        ),
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


def test_names_on_the_hub_are_known_without_a_network():
    names = ["hf-hub:timm/vit_small_patch16_224.augreg_in21k", "hf-hub:me/net_2024@v1"]
    for name in names:
        check_names(RunConfig(model_name=name), str)
    sizes = [image_size(RunConfig(model_name=name)) for name in names]
    patches = [patch_size(RunConfig(model_name=name)) for name in names]
    assert (sizes, patches) == ([224, None], [16, None])
    with pytest.raises(UserError, match=r"hf-hub:net: must be hf-hub:OWNER/NAME"):
        check_names(RunConfig(model_name="hf-hub:net"), str)


def test_a_model_of_the_hub_is_built_from_its_description(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub = RunConfig(model_name="hf-hub:me/net", sampled_patches=4)
    with pytest.raises(UserError) as error:
        check_model(hub)
    assert str(error.value).startswith("model_name: hf-hub:me/net cannot be built: ")
    assert "\n" not in str(error.value)
    repository = tmp_path / "models--me--net"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    described = {"architecture": "vit_tiny_patch16_224", "model_args": SMALL, "pretrained_cfg": {}}
    (repository / "snapshots" / "abc" / "config.json").write_text(json.dumps(described))
    assert check_model(hub) == 32
