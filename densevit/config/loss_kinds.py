"""The kinds of contrastive loss. A new kind is a record here and a module in `contrast/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# A field of RunConfig and the value that it must have.
Condition = tuple[str, Any]
# Fields with an effect, each with the condition for it, None if there is none.
Fields = Mapping[str, Condition | None]


@dataclass(frozen=True, eq=False)
class LossKind:
    """A kind of contrastive loss; `cl_mode: NAME` is this loss alone.

    name: its name in `cl_mode`, in metrics, and of its head and queue.
    module: the module with its `FUNCTIONS` (see `contrast.pairs.PairFunctions`), which may import
        torch: it is imported when a run computes the loss.
    tokens: the tokens of an image that its head projects: the patches, or the one of the image.
    help: what it contrasts, for `--help`.
    fields: the config fields that have an effect only with this kind (or another that lists them).
    joint: its weight in `cl_mode: joint`, from `joint_dense_weight`; None if it has no part in it.
    """

    name: str
    module: str
    tokens: Literal["image", "patches"]
    help: str
    fields: Fields = field(default_factory=dict)
    joint: Callable[[float], float] | None = None

    def all_fields(self) -> Fields:
        """Return the fields that have an effect with this kind, also those of every kind."""
        return {**COMMON_FIELDS, **self.fields}


_PATCH_KEYS = ("dense_negatives", "patches")
LOSS_KINDS = (
    LossKind(
        "global",
        "densevit.contrast.global_pairs",
        tokens="image",
        help="CLS token",
        joint=lambda dense: 1.0 - dense,
    ),
    LossKind(
        "dense",
        "densevit.contrast.dense_pairs",
        tokens="patches",
        help="patches",
        fields={
            "query_patches": None,
            "correspondence_features": None,
            "dense_negatives": None,
            "sampling_strategy": _PATCH_KEYS,
            "sampled_patches": _PATCH_KEYS,
        },
        joint=lambda dense: dense,
    ),
)

# Fields that have an effect with every kind.
COMMON_FIELDS: Fields = {
    "contrastive_weight_adaptive": None, "queue_size": None, "temperature": None,
    "learnable_temp": None, "exclude_same_image": None, "key_encoder": None,
    "momentum": ("key_encoder", "momentum"), "dense_dim": None, "projection_hidden_dim": None,
}  # fmt: skip


def loss_kind(name: str) -> LossKind:
    """Return the kind of that name."""
    return next(kind for kind in LOSS_KINDS if kind.name == name)


def cl_modes() -> tuple[str, ...]:
    """Return the valid values of `cl_mode`."""
    return (*(kind.name for kind in LOSS_KINDS), "joint", "none")
