"""The arguments that `model_kwargs` may hold: geometry and regularisation of a timm ViT.

timm.create_model takes more: names of files, addresses and hubs, which would open what somebody
else's sweep file or weights name, and layers, which are code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from densevit.utils.errors import UserError, nearest

# The parameters of timm's VisionTransformer, VisionTransformerRelPos, Eva, Beit, Cait and ConVit
# that are numbers, switches or names of a variant, and that no field of ours decides.
ALLOWED = frozenset({
    "img_size", "patch_size", "in_chans", "dynamic_img_size", "dynamic_img_pad",
    "ref_feat_shape", "embed_dim", "depth", "num_heads", "num_kv_heads", "mlp_ratio",
    "depth_token_only", "mlp_ratio_token_only", "global_pool", "class_token", "reg_tokens",
    "num_reg_tokens", "pool_include_prefix", "attn_pool_num_heads", "attn_pool_mlp_ratio",
    "head_init_scale", "qkv_bias", "qkv_fused", "qk_norm", "proj_bias", "scale_attn_norm",
    "scale_mlp_norm", "scale_attn_inner", "scale_mlp", "swiglu_mlp", "swiglu_align_to",
    "attn_type", "attn_only_layer_scale", "init_values", "pre_norm", "final_norm", "fc_norm",
    "use_fc_norm", "use_post_norm", "use_pre_transformer_norm", "use_post_transformer_norm",
    "pos_embed", "no_embed_class", "use_abs_pos_emb", "use_rot_pos_emb", "use_rel_pos_bias",
    "use_shared_rel_pos_bias", "rel_pos_type", "rel_pos_dim", "shared_rel_pos", "rope_type",
    "rope_grid_offset", "rope_grid_indexing", "rope_temperature", "rope_rotate_half",
    "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords", "rope_mrope_section",
    "local_up_to_layer", "locality_strength", "use_pos_embed", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "weight_init", "fix_init",
})  # fmt: skip
# The one argument of create_model's own: how images are prepared for given weights.
OVERLAY = "pretrained_cfg_overlay"
_NUMBER, _WORD, _COLOR = "a number above 0", "a word", "three numbers, for red, green and blue"
OVERLAID = {
    "crop_pct": _NUMBER, "crop_mode": _WORD, "interpolation": _WORD, "mean": _COLOR, "std": _COLOR,
}  # fmt: skip

_WEIGHTS = "names weights; set the field init_checkpoint"
_LAYERS = "names a layer, which is code; leave it out"
_INSTEAD = {
    "num_classes": "follows from the data set; leave it out",
    "drop_path_rate": "is the field drop_path; set that",
    "checkpoint_path": "is the field init_checkpoint; set that",
    "pretrained": "is a field; set that",
    "pretrained_strict": "is the field init_share; set that",
    "pretrained_cfg": f"{_WEIGHTS}, or {OVERLAY} with {', '.join(sorted(OVERLAID))}",
    "cache_dir": "is decided by $HF_HUB_CACHE; set that",
    "device": "is a field; set that",
    "dtype": "is the field precision; set that",
    **dict.fromkeys((
        "norm_layer", "act_layer", "block_fn", "embed_layer", "embed_norm_layer", "attn_layer",
        "mlp_layer", "block_layers", "block_layers_token", "patch_layer", "attn_block",
        "mlp_block", "attn_block_token_only", "mlp_block_token_only", "hybrid_backbone",
    ), _LAYERS),
}  # fmt: skip
_PLACES = frozenset({"file", "url", "state_dict", "hf_hub_id", "hf_hub_filename"})  # of weights


def check_model_kwargs(kwargs: Mapping[str, Any], model: str, source: str = "") -> None:
    """Reject arguments of timm that are not in the lists above; `source` says who gave them.

    Errors: `UserError` that begins with `source` and names the nearest valid argument.
    """
    place = f"{source}model_kwargs"
    for key in kwargs:
        if key in _INSTEAD:
            raise UserError(f"{place}: {key} {_INSTEAD[key]}")
        if key not in ALLOWED and key != OVERLAY:
            hint = nearest(key, ALLOWED)
            raise UserError(f"{place}: {key}: unknown to {model}; {hint}")
    if kwargs.get("in_chans", 3) != 3:
        raise UserError(
            f"{place}: in_chans: {kwargs['in_chans']} must be 3: all images, gray ones too, are "
            f"read as RGB; leave it out"
        )
    _check_overlay(kwargs.get(OVERLAY), f"{place}: {OVERLAY}")


def _check_overlay(overlay: object, place: str) -> None:
    if overlay is None:
        return
    if not isinstance(overlay, Mapping):
        raise UserError(f"{place}: {overlay!r} must be a mapping of {', '.join(sorted(OVERLAID))}")
    for key, value in overlay.items():
        if key in _PLACES:
            raise UserError(f"{place} {_WEIGHTS}")
        if key not in OVERLAID:
            raise UserError(f"{place}: {key}: not allowed here; {nearest(key, OVERLAID)}")
        if not _fits(value, OVERLAID[key]):
            raise UserError(f"{place}: {key}: {value!r} must be {OVERLAID[key]}")


def _fits(value: object, kind: str) -> bool:
    if kind == _WORD:
        return isinstance(value, str)
    if kind == _COLOR:
        return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))
    return _is_number(value) and value > 0


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
