"""Arguments of a model: numbers and switches of timm's ViTs, and nothing that opens a file."""

import inspect

import pytest

from densevit.config.model_kwargs import ALLOWED, OVERLAY, check_model_kwargs
from densevit.config.model_names import check_names
from densevit.config.run_config import RunConfig
from densevit.utils.errors import UserError
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402
from timm.models import beit, cait, convit, eva  # noqa: E402
from timm.models._builder import build_model_with_cfg  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from timm.models.vision_transformer_relpos import VisionTransformerRelPos  # noqa: E402

VITS = (
    VisionTransformer, VisionTransformerRelPos, beit.Beit, cait.Cait, convit.ConVit, eva.Eva,
)  # fmt: skip


def parameters(*functions):
    return {
        name: parameter.default
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
    }


def test_all_that_is_allowed_is_a_number_a_switch_or_a_name_for_a_vit():
    defaults = parameters(*VITS)
    assert defaults.keys() >= ALLOWED
    assert not {name for name in ALLOWED if callable(defaults[name])}
    assert not parameters(timm.create_model, build_model_with_cfg).keys() & ALLOWED


def test_all_else_is_refused_with_its_reason():
    others = {*parameters(*VITS, timm.create_model, build_model_with_cfg), "features_only"}
    for name in others - ALLOWED - {OVERLAY}:
        with pytest.raises(UserError, match=f"^model_kwargs: {name}:? [^\n]+; "):
            check_model_kwargs({name: None}, "vit")
    assert others > ALLOWED
    check_model_kwargs(dict.fromkeys(ALLOWED - {"in_chans"}) | {"in_chans": 3}, "vit")
    told = {"crop_pct": 0.75, "crop_mode": "center", "interpolation": "bicubic"}
    check_model_kwargs({OVERLAY: {**told, "mean": [0, 0.5, 1.0], "std": (1, 1, 1)}}, "vit")


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({"dpth": 1}, "model_kwargs: dpth: unknown to vit; did you mean 'depth'?"),
        ({7: 1}, "model_kwargs: 7: unknown to vit; "),
        ({OVERLAY: {"hf_hub_id": "a/b"}}, f"model_kwargs: {OVERLAY} names weights; set the field"),
        ({OVERLAY: {"custom_load": True}}, f"model_kwargs: {OVERLAY}: custom_load: not allowed"),
        ({OVERLAY: {"crop": 1}}, f"{OVERLAY}: crop: not allowed here; did you mean 'crop_"),
        ({OVERLAY: {"crop_pct": "a"}}, f"{OVERLAY}: crop_pct: 'a' must be a number above 0"),
        ({OVERLAY: {"crop_pct": 0}}, "crop_pct: 0 must be a number above 0"),
        ({OVERLAY: {"crop_mode": True}}, "crop_mode: True must be a word"),
        ({OVERLAY: {"mean": [1, 2]}}, "mean: [1, 2] must be three numbers, for red, green and"),
        ({OVERLAY: {"std": [1, 2, "a"]}}, "std: [1, 2, 'a'] must be three numbers"),
        ({OVERLAY: "a"}, f"model_kwargs: {OVERLAY}: 'a' must be a mapping of crop_mode, "),
    ],
    ids=str,
)
def test_the_nearest_valid_name_is_given(kwargs, wanted):
    with pytest.raises(UserError) as error:
        check_model_kwargs(kwargs, "vit")
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_is_of_timms_list_or_of_the_hub():
    """timm would also build what a folder describes."""
    for name in ("local-dir:net", "file:net", "timm/vit_tiny_patch16_224"):
        with pytest.raises(UserError, match=f"{name}: must be a model of timm's, or hf-hub:"):
            check_names(RunConfig(model_name=name), str)
