"""A timm Vision Transformer with a classification head and projection heads."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from densevit.config.loss_modes import applies, loss_weights, self_supervised
from densevit.config.run_config import RunConfig
from densevit.utils.errors import UserError, nearest, reason_of
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402
from timm.data.config import resolve_data_config  # noqa: E402


class Tokens(NamedTuple):
    """Outputs for a batch: features `image` (B, E) and `patches` (B, N, E), `logits` (B, C)."""

    image: Tensor
    patches: Tensor
    logits: Tensor


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
    get_classifier: Callable[[], nn.Module]
    set_grad_checkpointing: Callable[[], None]


class Backbone(TimmModel):
    """The interface of timm's Vision Transformers, for type checks; never built."""

    num_prefix_tokens: int
    patch_embed: PatchEmbed


class DenseViT(nn.Module):
    """Backbone and projection heads of one run.

    `heads` projects tokens to the contrastive space, for each kind of loss with weights of its own
    (DenseCL, section 3.2). It holds only the heads that the run's losses need. The backbone is
    built first, so that all arms of an ablation start from the same weights for a seed.
    """

    def __init__(self, config: RunConfig, classes: int, *, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = _backbone(config, classes, pretrained=pretrained and config.pretrained)
        if config.gradient_checkpointing:
            self.backbone.set_grad_checkpointing()
        self.linear_probe = self_supervised(config)
        width, hidden = self.backbone.num_features, config.projection_hidden_dim
        self.heads = nn.ModuleDict(
            {
                kind: projection_head(width, hidden, config.dense_dim)
                for kind in loss_weights(config)
            }
        )

    @property
    def image_size(self) -> int:
        """Return the side of the input in pixels."""
        return self.backbone.patch_embed.img_size[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of patches in an image."""
        return self.backbone.patch_embed.grid_size

    def forward(self, images: Tensor) -> Tokens:
        """Return the `Tokens` of images (B, 3, S, S)."""
        features = self.backbone.forward_features(images)
        image, patches = _split(self.backbone, features)
        # A probe must not change the features that it reads (as in SimCLR's linear evaluation).
        read = features.detach() if self.linear_probe else features
        return Tokens(image, patches, self.backbone.forward_head(read))

    def preprocessing(self) -> dict[str, Any]:
        """Return timm's preprocessing for the network; see `preprocessing_of`."""
        return preprocessing_of(data_config(self.backbone))


class TimmTokens(nn.Module):
    """Wrap a timm classifier so that it returns `Tokens`, like `DenseViT`.

    A model that is not a ViT has no patches and `grid` None; its image features are the input of
    its classifier.
    """

    def __init__(self, backbone: TimmModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = backbone.patch_embed.grid_size if _has_patch_tokens(backbone) else None

    def forward(self, images: Tensor) -> Tokens:
        """Return the `Tokens` of images (B, 3, S, S)."""
        features = self.backbone.forward_features(images)
        if _has_patch_tokens(self.backbone):
            image, patches = _split(self.backbone, features)
        else:
            image = self.backbone.forward_head(features, pre_logits=True)
            patches = image.new_empty(len(image), 0, image.shape[1])
        return Tokens(image, patches, self.backbone.forward_head(features))


def _has_patch_tokens(model: nn.Module) -> TypeGuard[Backbone]:
    """Return True if a timm model is a ViT whose patches form a grid; those of XCiT do not."""
    embed = getattr(model, "patch_embed", None)
    return hasattr(model, "num_prefix_tokens") and hasattr(embed, "grid_size")


def create_timm(name: str, *, pretrained: bool, **arguments: Any) -> TimmModel:
    """Return a model of timm's; it may raise anything, on a wrong argument or a failed download."""
    model: TimmModel = timm.create_model(  # type: ignore[assignment]  # timm says nn.Module
        name, pretrained=pretrained, **arguments
    )
    return model


def data_config(model: nn.Module, *, use_test_size: bool = False) -> dict[str, Any]:
    """Return timm's data config of a network: the size and the preprocessing of its input."""
    config: dict[str, Any] = resolve_data_config({}, model=model, use_test_size=use_test_size)
    return config


def preprocessing_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the preprocessing in timm's data config: mean, std, crop and interpolation."""
    return {key: config[key] for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation")}


def _split(backbone: Backbone, features: Tensor) -> tuple[Tensor, Tensor]:
    """Split tokens (B, prefix + N, E) into features of the image (B, E) and patches (B, N, E)."""
    patches = features[:, backbone.num_prefix_tokens :]
    # Without a CLS token the image is the mean of its patches, as in timm's `avg` pooling.
    return (features[:, 0] if has_class_token(backbone) else patches.mean(dim=1)), patches


def projection_head(width: int, hidden: int, dim: int) -> nn.Sequential:
    """Return a 2-layer MLP on (..., width), as in MoCo v2 and DenseCL (Wang 2021, section 3.2)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


def has_class_token(backbone: nn.Module) -> bool:
    """Return True if a timm ViT has a CLS token."""
    return getattr(backbone, "cls_token", None) is not None


def check_model(config: RunConfig) -> int:
    """Check a run's model without allocating weights; return its input side in pixels.

    Errors: `UserError` that begins with the field, if timm cannot build the model, if it is not a
    ViT, or if it has fewer patches than the run samples.
    """
    with torch.device("meta"):
        backbone = _backbone(config, classes=2)
    patches = backbone.patch_embed.num_patches
    for name in ("sampled_patches", "query_patches"):
        value = getattr(config, name)
        if applies(name, config) and value != "all" and value > patches:
            raise UserError(
                f"{name}: {value} is more than the {patches} patches that "
                f"{config.model_name} makes of an image"
            )
    return backbone.patch_embed.img_size[0]


def _backbone(config: RunConfig, classes: int, *, pretrained: bool = False) -> Backbone:
    kwargs = dict(config.model_kwargs)
    if "num_classes" in kwargs:
        raise UserError("model_kwargs: num_classes follows from the data set; leave it out")
    if "drop_path_rate" in kwargs:
        raise UserError("model_kwargs: drop_path_rate is the field drop_path; set that")
    if config.drop_path > 0:
        kwargs["drop_path_rate"] = config.drop_path
    try:
        backbone = create_timm(
            config.model_name, pretrained=pretrained, num_classes=classes, **kwargs
        )
    except Exception as error:  # layers of timm may raise anything; the user chose their arguments
        raise UserError(_cannot_build(config, error, pretrained)) from None
    if not _has_patch_tokens(backbone):
        raise UserError(
            f"model_name: {config.model_name} is not a Vision Transformer with patch tokens"
        )
    (height, width), patch = backbone.patch_embed.img_size, backbone.patch_embed.patch_size[0]
    if height != width or height % patch:
        raise UserError(
            f"model_kwargs: img_size {height}x{width} must be square and divisible by the patch "
            f"size {patch}"
        )
    return backbone


def _cannot_build(config: RunConfig, error: Exception, pretrained: bool) -> str:
    reason = reason_of(error, 1000)
    if pretrained:
        return (
            f"pretrained: timm cannot load the weights of {config.model_name}: {reason[:200]}; "
            f"without internet, download them elsewhere and set init_checkpoint to the file"
        )
    unknown = re.search(r"unexpected keyword argument '(\w+)'", reason)
    if unknown:
        names = inspect.signature(timm.models.VisionTransformer).parameters
        return f"model_kwargs: {unknown[1]}: unknown to {config.model_name}; " + nearest(
            unknown[1], names
        )
    key = "model_kwargs" if config.model_kwargs else "model_name"
    return f"{key}: timm cannot build {config.model_name}: {reason}"
