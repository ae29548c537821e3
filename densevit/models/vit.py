"""A timm Vision Transformer with a classification head and projection heads."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from densevit.config.loss_modes import loss_weights, self_supervised
from densevit.config.run_config import RunConfig
from densevit.models.backbone import Backbone, TimmModel, build_backbone, has_patch_tokens
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from timm.data.config import resolve_data_config  # noqa: E402


class Tokens(NamedTuple):
    """Outputs for a batch: features `image` (B, E) and `patches` (B, N, E), `logits` (B, C)."""

    image: Tensor
    patches: Tensor
    logits: Tensor


class DenseViT(nn.Module):
    """Backbone and projection heads of one run.

    `heads` projects tokens to the contrastive space, for each kind of loss with weights of its own
    (DenseCL, section 3.2). It holds only the heads that the run's losses need. The backbone is
    built first, so that all arms of an ablation start from the same weights for a seed.
    """

    def __init__(self, config: RunConfig, classes: int, *, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = build_backbone(config, classes, pretrained=pretrained and config.pretrained)
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
        self.grid = backbone.patch_embed.grid_size if has_patch_tokens(backbone) else None

    def forward(self, images: Tensor) -> Tokens:
        """Return the `Tokens` of images (B, 3, S, S)."""
        features = self.backbone.forward_features(images)
        if has_patch_tokens(self.backbone):
            image, patches = _split(self.backbone, features)
        else:
            image = self.backbone.forward_head(features, pre_logits=True)
            patches = image.new_empty(len(image), 0, image.shape[1])
        return Tokens(image, patches, self.backbone.forward_head(features))


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
