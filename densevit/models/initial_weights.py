"""Find the initial weights of a network in a file, and check that they fit it."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from densevit.models.backbone import Backbone
from densevit.models.vit import DenseViT
from densevit.models.weights_file import read_tensors
from densevit.runs import checkpoint
from densevit.runs.checkpoint_files import is_checkpoint
from densevit.runs.initial_file import initial_file
from densevit.utils.errors import UserError, reason_of
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from timm.models.vision_transformer import checkpoint_filter_fn  # noqa: E402

BACKBONE = "backbone."
MOST_NAMES = 8  # in a message
# What others put before the names of the network: DINO, DINOv2, MoCo v3, Lightning, I-JEPA, torch.
_PREFIXES = (
    "backbone", "module", "teacher", "model", "base_encoder", "state_dict", "encoder", "_orig_mod",
)  # fmt: skip
_EMBEDDINGS = ("patch_embed.proj.weight", "pos_embed")


@dataclass(frozen=True)
class InitialWeights:
    """Weights from a file, under the names of a `DenseViT`; `prefix` was stripped from its names.

    share: of the backbone's weights without its classifier, those that the file holds, in [0, 1].
    other: those that it holds in another shape.
    lacking: the patch and position embedding, if the file does not hold them.
    """

    tensors: dict[str, Tensor]
    prefix: str
    share: float
    other: tuple[str, ...]
    lacking: tuple[str, ...]


def read_initial(model: DenseViT, source: str, least: float) -> InitialWeights:
    """Read the weights that `init_checkpoint` names; the network may be on the meta device.

    Position embeddings are resized to the network's grid, as in timm. `least` is the share of the
    backbone's weights that the file must hold; unless it is 0, patch and position embedding, too.

    Errors: `UserError` that names the source if it is missing, damaged, or does not fit.
    """
    path = initial_file(source)
    try:
        if is_checkpoint(path):
            found = [_of_run(checkpoint.read(path)["model"], model)]
            names = [*found[0].tensors]
        else:
            tensors = read_tensors(path)
            names = [*tensors]
            found = _candidates(tensors, model)
    except Exception as error:  # the reader may raise anything on a foreign file
        reason = str(error) if isinstance(error, UserError) else _why(error)
        raise UserError(f"init_checkpoint: {source}: {reason}") from None
    enough = [each for each in found if each.share >= least and (not each.lacking or not least)]
    fitting = [each for each in enough if each.share > 0]
    if len(fitting) == 1 or (fitting and not fitting[0].prefix):
        return fitting[0]
    if fitting:
        prefixes = ", ".join(each.prefix for each in fitting)
        raise UserError(
            f"init_checkpoint: {source}: holds several networks that fit: {prefixes}; save the one "
            f"to start from as a file of its own"
        )
    best = max(found, key=lambda each: (each.share, len(each.other)))
    raise UserError(f"init_checkpoint: {source}: {_misfit(best, model, names, least)}")


def fitting_names(model: DenseViT, tensors: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that the network has in the same shape."""
    own = model.state_dict()
    return [n for n, v in tensors.items() if n in own and own[n].shape == v.shape]


def some_names(names: Iterable[str]) -> str:
    """Return the first names, and the number of all if there are more."""
    listed = [*names]
    more = f", ... ({len(listed)} in all)" if len(listed) > MOST_NAMES else ""
    return ", ".join(listed[:MOST_NAMES]) + more


def _why(error: Exception) -> str:
    """Return why a file cannot be read, without torch's advice to its programmers."""
    if not isinstance(error, pickle.UnpicklingError):
        return f"cannot be read: {reason_of(error)}"
    found = re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error))
    if found:
        return (
            f"holds more than weights ({found[1]}), which could run any code; save the weights "
            f"alone: torch.save(model.state_dict(), FILE)"
        )
    return "is no file of weights: neither safetensors nor what torch.save writes"


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return what may stand before the network's names: "" and all chains of known prefixes."""
    found = {"": None}
    for name in names:
        prefix = ""
        for part in name.split(".")[:-1]:
            if part not in _PREFIXES:
                break
            prefix += f"{part}."
            found[prefix] = None
    return [*found]


def _candidates(tensors: dict[str, Tensor], model: DenseViT) -> list[InitialWeights]:
    """Return the weights under each prefix; raise timm's error if it can read none of them."""
    found, errors = [], []
    for prefix in _prefixes(tensors):
        inside = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        try:
            found.append(_measured(inside, {}, prefix, model))
        except Exception as error:  # timm may raise anything on foreign tensors
            errors.append(error)
    if not found:
        raise errors[0]
    return found


def _of_run(state: dict[str, Tensor], model: DenseViT) -> InitialWeights:
    heads = {n: v for n, v in state.items() if not n.startswith(BACKBONE)}
    inside = {n.removeprefix(BACKBONE): v for n, v in state.items() if n not in heads}
    return _measured(inside, heads, "", model)


def _measured(
    inside: dict[str, Tensor], heads: dict[str, Tensor], prefix: str, model: DenseViT
) -> InitialWeights:
    inside = checkpoint_filter_fn(
        inside,
        model.backbone,  # type: ignore[arg-type]  # timm names one ViT, takes all
    )
    needed = _needed(model.backbone)
    held = {n for n in needed if n in inside and inside[n].shape == needed[n].shape}
    total = sum(value.numel() for value in needed.values())
    share = sum(needed[name].numel() for name in held) / total
    lacking = tuple(name for name in _EMBEDDINGS if name in needed and name not in held)
    tensors = {f"{BACKBONE}{name}": value for name, value in inside.items()} | heads
    other = tuple(name for name in needed if name in inside and name not in held)
    return InitialWeights(tensors, prefix, share, other, lacking)


def _needed(backbone: Backbone) -> dict[str, Tensor]:
    """Return the backbone's parameters without its classifier, which depends on the classes."""
    classifier = getattr(backbone, "pretrained_cfg", {}).get("classifier") or "head"
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {n: v for n, v in backbone.named_parameters() if not n.startswith(heads)}


def _misfit(best: InitialWeights, model: DenseViT, names: list[str], least: float) -> str:
    """Describe why a file does not fit, with names from both sides."""
    needed = _needed(model.backbone)
    lacking = " and ".join(best.lacking)
    if best.share == 0 and not best.other:
        fault = f"none of its {len(names)} tensors fits the network"
    elif best.share >= least:
        fault = f"lacks {lacking} of the network"
    else:
        fault = (
            f"fits {best.share:.1%} of the backbone's weights, at least {least:.4g} of them are "
            f"needed (init_share)" + (f", and lacks {lacking}" if lacking else "")
        )
    missing = some_names(n for n in needed if f"{BACKBONE}{n}" not in best.tensors)
    sides = f"in the network {missing}; in the file {some_names(names)}"
    if best.other:
        name = best.other[0]
        ours, theirs = tuple(needed[name].shape), tuple(best.tensors[f"{BACKBONE}{name}"].shape)
        sides = f"{name} is {theirs} in the file, {ours} in the network"
    return f"{fault}: {sides}; do model_name and model_kwargs fit the file?"
