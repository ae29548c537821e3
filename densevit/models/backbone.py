"""The backbone of a run: a timm Vision Transformer, built and checked."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from densevit.config.loss_modes import applies
from densevit.config.model_kwargs import ALLOWED, check_model_kwargs
from densevit.config.model_names import HUB, check_place
from densevit.config.run_config import RunConfig
from densevit.utils.errors import UserError, nearest, reason_of
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402


class PatchEmbed(nn.Module):
    """The attributes of a timm ViT's patch embedding, sizes as (rows, columns); never built."""

    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    grid_size: tuple[int, int]
    num_patches: int


class TimmModel(nn.Module):
    """The interface of timm's models, for type checks; never built."""

    num_features: int

    num_classes: int
    forward_features: Callable[[Tensor], Tensor]
    forward_head: Callable[..., Tensor]
    get_classifier: Callable[[], nn.Module | tuple[nn.Module, ...]]
    set_grad_checkpointing: Callable[[], None]


class Backbone(TimmModel):
    """The interface of timm's Vision Transformers, for type checks; never built."""

    num_prefix_tokens: int
    patch_embed: PatchEmbed


def create_timm(name: str, *, pretrained: bool, **arguments: Any) -> TimmModel:
    """Return a model of timm's; it may raise anything, on a wrong argument or a failed download."""
    model: TimmModel = timm.create_model(  # type: ignore[assignment]  # timm says nn.Module
        name, pretrained=pretrained, **arguments
    )
    return model


def check_model(config: RunConfig) -> int:
    """Check a run's model without allocating weights; return its input side in pixels.

    Errors: `UserError` that begins with the field, if timm cannot build the model, if it is not a
    ViT, or if it has fewer patches than the run samples.
    """
    with torch.device("meta"):
        backbone = build_backbone(config, classes=2)
    return check_patches(config, backbone)


def check_patches(config: RunConfig, backbone: Backbone) -> int:
    """Check that a backbone has the patches that its run needs; return its input side in pixels.

    Errors: `UserError` that begins with the field.
    """
    count = backbone.patch_embed.num_patches
    dropped = getattr(getattr(backbone, "patch_drop", None), "prob", 0.0)
    kept = max(1, int(count * (1 - dropped)))  # in training, as timm's PatchDropout
    geometry = config.correspondence_features == "geometry"
    if dropped and geometry and applies("correspondence_features", config):
        raise UserError(
            "model_kwargs: patch_drop_rate: the places of the patches that are left are not known, "
            "and correspondence_features: geometry needs them; use another one, or drop no patches"
        )
    # Keys of the moving average come from all patches: it is in evaluation mode.
    keys = kept if config.key_encoder == "shared" else count
    for name, patches in (("sampled_patches", keys), ("query_patches", kept)):
        value = getattr(config, name)
        if applies(name, config) and value != "all" and value > patches:
            left = f", of which patch_drop_rate leaves {patches}" if patches < count else ""
            raise UserError(
                f"{name}: {value} is more than the {count} patches that "
                f"{config.model_name} makes of an image{left}"
            )
    return backbone.patch_embed.img_size[0]


def build_backbone(config: RunConfig, classes: int, *, pretrained: bool = False) -> Backbone:
    check_place(config.model_name, "model_name")
    check_model_kwargs(config.model_kwargs, config.model_name)
    kwargs = dict(config.model_kwargs)
    if config.drop_path > 0:
        kwargs["drop_path_rate"] = config.drop_path
    try:
        backbone = create_timm(
            config.model_name, pretrained=pretrained, num_classes=classes, **kwargs
        )
    except Exception as error:  # layers of timm may raise anything; the user chose their arguments
        if kwargs:
            _refuse_other_kinds(config.model_name)
        raise UserError(_cannot_build(config, error, pretrained)) from None
    if not has_patch_tokens(backbone):
        raise UserError(_other_kind(config.model_name, backbone))
    (height, width), patch = backbone.patch_embed.img_size, backbone.patch_embed.patch_size[0]
    if height != width or height % patch:
        raise UserError(
            f"model_kwargs: img_size {height}x{width} must be square and divisible by the patch "
            f"size {patch}"
        )
    return backbone


def _refuse_other_kinds(name: str) -> None:
    """Reject a model that is no Vision Transformer, whatever arguments it does not know."""
    try:
        with torch.device("meta"):
            model = create_timm(name, pretrained=False)
    except Exception:  # it is not the arguments alone
        return
    if not has_patch_tokens(model):
        raise UserError(_other_kind(name, model)) from None


def _other_kind(name: str, model: nn.Module) -> str:
    return (
        f"model_name: {name} is a {type(model).__name__}, not a plain Vision Transformer: the "
        f"losses need one token for each patch of the image; use one of timm's vit_*, deit*, "
        f"beit*, eva* or cait_*, such as {_alike(name)}"
    )


def _alike(name: str) -> str:
    """Return a plain Vision Transformer of about the size that a model's name says."""
    size = next((each for each in ("tiny", "base", "large") if each in name), "small")
    return f"vit_{size}_patch16_224"


def _cannot_build(config: RunConfig, error: Exception, pretrained: bool) -> str:
    reason = reason_of(error, 1000)
    if config.model_name.startswith(HUB) and not pretrained:
        return (
            f"model_name: {config.model_name} cannot be built: {reason[:200]}; the Hub's file that "
            f"describes it is needed, from the internet or from the cache of an earlier download"
        )
    if pretrained:
        return (
            f"pretrained: timm cannot load the weights of {config.model_name}: {reason[:200]}; "
            f"without internet, download them elsewhere and set init_checkpoint to the file"
        )
    unknown = re.search(r"unexpected keyword argument '(\w+)'", reason)
    if unknown:  # an argument of another kind of ViT
        names = ALLOWED & inspect.signature(timm.models.VisionTransformer).parameters.keys()
        return f"model_kwargs: {unknown[1]}: unknown to {config.model_name}; " + nearest(
            unknown[1], names
        )
    key = "model_kwargs" if config.model_kwargs else "model_name"
    return f"{key}: timm cannot build {config.model_name}: {reason}"


def has_patch_tokens(model: nn.Module) -> TypeGuard[Backbone]:
    """Return True if a timm model is a ViT whose patches form a grid; those of XCiT do not."""
    embed = getattr(model, "patch_embed", None)
    return hasattr(model, "num_prefix_tokens") and hasattr(embed, "grid_size")
