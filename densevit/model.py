"""A timm Vision Transformer with a classification head and projection heads."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densevit.config import RunConfig, applies, loss_weights, self_supervised
from densevit.errors import UserError, nearest
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402
from timm.data import resolve_data_config  # noqa: E402


class Tokens(NamedTuple):
    """What the network says of a batch: `image` (B, E), `patches` (B, N, E), `logits` (B, C)."""

    image: Tensor
    patches: Tensor
    logits: Tensor


class DenseViT(nn.Module):
    """Backbone and heads of one run.

    `heads` maps to the contrastive space: `global` the image, `dense` the patches, each with
    weights of its own (DenseCL, section 3.2); it holds what the run's losses need. The backbone is
    built first, so that for one seed all arms of an ablation start from the same weights.
    """

    def __init__(self, config: RunConfig, classes: int, *, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = _backbone(config, classes, pretrained=pretrained and config.pretrained)
        if config.gradient_checkpointing:
            self.backbone.set_grad_checkpointing()
        self.probe = self_supervised(config)
        width, hidden = self.backbone.num_features, config.projection_hidden_dim
        self.heads = nn.ModuleDict(
            {
                kind: projection_head(width, hidden, config.dense_dim)
                for kind in loss_weights(config)
            }
        )

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.backbone.patch_embed.img_size[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a picture."""
        return self.backbone.patch_embed.grid_size

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of pictures (B, 3, S, S)."""
        features = self.backbone.forward_features(images)
        image, patches = _split(self.backbone, features)
        # A probe reads the features and must not change them (as in SimCLR's linear evaluation).
        seen = features.detach() if self.probe else features
        return Tokens(image, patches, self.backbone.forward_head(seen))

    def pictures(self) -> dict:
        """How the network wants its pictures, from timm: mean, std, crop and interpolation."""
        wanted = resolve_data_config({}, model=self.backbone)
        keys = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
        return {key: wanted[key] for key in keys}


class TimmTokens(nn.Module):
    """A classifier of timm's that says what a `DenseViT` says of pictures.

    What is no ViT has no `grid` and no patches; its image features are those before its classifier.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        embed = getattr(backbone, "patch_embed", None)
        tokens = hasattr(backbone, "num_prefix_tokens") and hasattr(embed, "grid_size")
        self.grid: tuple[int, int] | None = embed.grid_size if tokens else None

    def forward(self, images: Tensor) -> Tokens:
        """Tokens of pictures (B, 3, S, S)."""
        features = self.backbone.forward_features(images)
        if self.grid:
            image, patches = _split(self.backbone, features)
        else:
            image = self.backbone.forward_head(features, pre_logits=True)
            patches = image.new_empty(len(image), 0, image.shape[1])
        return Tokens(image, patches, self.backbone.forward_head(features))


def _split(backbone: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the picture (B, E) and of its patches (B, N, E), from all (B, prefix + N, E)."""
    patches = features[:, backbone.num_prefix_tokens :]
    # Without a CLS token the image is the mean of its patches, as timm's `avg` pooling has it.
    return (features[:, 0] if has_class_token(backbone) else patches.mean(dim=1)), patches


def projection_head(width: int, hidden: int, dim: int) -> nn.Sequential:
    """Two-layer MLP on (..., width), as in MoCo v2 and DenseCL (Wang et al. 2021, section 3.2)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


def has_class_token(backbone: nn.Module) -> bool:
    """Whether the first token of a timm ViT stands for the whole picture."""
    return getattr(backbone, "cls_token", None) is not None


def check_model(config: RunConfig) -> int:
    """The side in pixels of the pictures that a run's model takes; allocates no weights.

    Errors: `UserError` beginning with the field, for a model that timm cannot build, that is no
    ViT, or that makes fewer patches of a picture than the run wants.
    """
    with torch.device("meta"):
        backbone = _backbone(config, classes=2)
    patches = backbone.patch_embed.num_patches
    for name in ("sampled_patches", "query_patches"):
        value = getattr(config, name)
        if applies(name, config) and value != "all" and value > patches:
            raise UserError(
                f"{name}: {value} is more than the {patches} patches that "
                f"{config.model_name} makes of a picture"
            )
    return backbone.patch_embed.img_size[0]


def _backbone(config: RunConfig, classes: int, *, pretrained: bool = False) -> nn.Module:
    kwargs = dict(config.model_kwargs)
    if "num_classes" in kwargs:
        raise UserError("model_kwargs: num_classes follows from the data set; leave it out")
    if "drop_path_rate" in kwargs:
        raise UserError("model_kwargs: drop_path_rate is the field drop_path; set that")
    if config.drop_path > 0:
        kwargs["drop_path_rate"] = config.drop_path
    try:
        backbone = timm.create_model(
            config.model_name, pretrained=pretrained, num_classes=classes, **kwargs
        )
    except Exception as error:  # timm raises whatever its layers raise; the user gave the names
        raise UserError(_cannot_build(config, error, pretrained)) from None
    embed = getattr(backbone, "patch_embed", None)
    # XCiT's have no grid.
    if not hasattr(backbone, "num_prefix_tokens") or not hasattr(embed, "grid_size"):
        raise UserError(
            f"model_name: {config.model_name} is no Vision Transformer with patch tokens"
        )
    height, width = embed.img_size
    if height != width or height % embed.patch_size[0]:
        raise UserError(
            f"model_kwargs: img_size {height}x{width} must be square and divisible by the patch "
            f"size {embed.patch_size[0]}"
        )
    return backbone


def _cannot_build(config: RunConfig, error: Exception, pretrained: bool) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if pretrained:
        return (
            f"pretrained: timm cannot give the weights of {config.model_name}: {reason[:200]}; "
            f"without a network, fetch them elsewhere and name the file in init_checkpoint"
        )
    unknown = re.search(r"unexpected keyword argument '(\w+)'", reason)
    if unknown:
        names = inspect.signature(timm.models.VisionTransformer).parameters
        return f"model_kwargs: {unknown[1]}: unknown to {config.model_name}; " + nearest(
            unknown[1], names
        )
    key = "model_kwargs" if config.model_kwargs else "model_name"
    return f"{key}: timm cannot build {config.model_name}: {reason}"
