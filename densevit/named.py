"""A network by what a user calls it: a run, a checkpoint, a file of weights, a model of timm's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from densevit import checkpoint
from densevit.config import identity
from densevit.data.imagenet import wnids
from densevit.errors import UserError, nearest
from densevit.model import DenseViT
from densevit.rundir import RunFolder
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402
from timm.data import resolve_data_config  # noqa: E402
from timm.models import load_state_dict  # noqa: E402

_PICTURES = ("mean", "std", "crop_pct", "crop_mode", "interpolation")


@dataclass(frozen=True)
class Named:
    """A network, the `classes` that its outputs mean, and how it wants its `pictures`: of
    `image_size` pixels a side, and timm's words for the rest. `source` tells it from any other."""

    name: str
    source: str
    model: nn.Module
    classes: tuple[str, ...]
    image_size: int
    pictures: dict[str, Any]


def open_named(target: str, run: RunFolder | None, model_name: str | None) -> Named:
    """The network that `target` means; `run` is the run of that name, if there is one.

    `model_name` is that of a file of weights that does not say it. Errors: `UserError`.
    """
    if run is not None:
        return _of_run(run, None)
    path = Path(target)
    if path.is_file() and checkpoint.is_checkpoint(path):
        return _of_run(RunFolder(path.absolute().parent.parent), path)
    if path.is_file():
        return _of_file(path, model_name)
    if path.exists() or "/" in target:
        raise UserError(f"{target}: no such run, checkpoint or file of weights")
    if not timm.is_model(target.split(".")[0]):
        hint = nearest(target, timm.list_models())
        raise UserError(f"{target}: no run of that id, no file, and no model of timm's; {hint}")
    try:
        model = timm.create_model(target, pretrained=True)
    except Exception as error:  # timm raises whatever its layers and its downloads raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{target}: timm cannot give its weights: {reason}; without a network, fetch them "
            f"elsewhere and give the file, with --model-name {target}"
        ) from None
    return _of_timm(target, target, model, None)


def _of_run(folder: RunFolder, file: Path | None) -> Named:
    if not folder.config_file.is_file():
        raise UserError(f"{file}: lies in no run directory: {folder.config_file}: no such file")
    config = folder.config()
    if file is None:
        state = checkpoint.load(folder.checkpoint_folder, identity(config).run)
    else:
        try:
            state = checkpoint.read(file)
        except checkpoint.Unusable as error:
            raise UserError(f"{file}: {error}") from None
    if state is None:
        raise UserError(f"{folder.path}: holds no checkpoint yet")
    model = DenseViT(config, len(state["classes"]), pretrained=False)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError:
        raise UserError(f"{file or folder.path}: is the checkpoint of another network") from None
    classes, name = tuple(state["classes"]), folder.path.name
    source = f"{name}, step {state['step']}"
    return Named(name, source, model, classes, model.image_size, model.pictures())


def _of_file(path: Path, model_name: str | None) -> Named:
    """A file of timm's weights; one that `densevit export` has written says all about itself."""
    about = _metadata(path)
    name = model_name or about.get("architecture")
    if name is None:
        raise UserError(f"{path}: does not say of which model it is; give --model-name NAME")
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"{path}: {name}: no model of timm's; {nearest(name, timm.list_models())}")
    try:
        classes = tuple(json.loads(about["classes"])) if "classes" in about else None
        kwargs = json.loads(about.get("model_kwargs", "{}"))
        if classes is not None:
            kwargs["num_classes"] = len(classes)
        model = timm.create_model(name, pretrained=False, **kwargs)
        model.load_state_dict(load_state_dict(str(path), use_ema=False, weights_only=True))
    except Exception as error:  # whatever part of timm meets a foreign file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as weights of {name}: {reason}") from None
    with path.open("rb") as file:
        source = f"{name}, {checkpoint.digest(file)}"
    return _of_timm(path.stem, source, model, classes)


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from None


def _of_timm(name: str, source: str, model: nn.Module, classes: tuple[str, ...] | None) -> Named:
    if classes is None:
        if model.num_classes != len(wnids()):
            raise UserError(
                f"{name}: has {model.num_classes} outputs, and what they mean is not said; known "
                f"are ImageNet's {len(wnids())} classes, and files of densevit export"
            )
        classes = wnids()
    # A ViT may have been built for another size than the one that its name has weights for; what
    # takes any size is tested at timm's test size, as in its published tables.
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    wanted = resolve_data_config({}, model=model, use_test_size=not built)
    size = built[0] if built else wanted["input_size"][1]
    return Named(name, source, model, classes, size, {key: wanted[key] for key in _PICTURES})
