"""Load a network by the name a user gives: a run, a checkpoint, a weights file or a timm model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densevit.config.model_kwargs import check_model_kwargs
from densevit.config.model_names import HUB
from densevit.data.imagenet import wnids
from densevit.models.backbone import TimmModel, create_timm
from densevit.models.vit import DenseViT, data_config, preprocessing_of
from densevit.models.weights_file import check_weights_file
from densevit.runs import checkpoint, checkpoint_files
from densevit.runs.directory import RunFolder
from densevit.utils.errors import UserError, nearest, reason_of
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

import timm  # noqa: E402
from timm.models import load_state_dict  # noqa: E402


@dataclass(frozen=True)
class LoadedModel:
    """A loaded network with its class names and its preprocessing.

    `classes` names the outputs. `image_size` is the side of the input in pixels. `preprocessing` is
    that of `models.vit.preprocessing_of`. `source` identifies the weights.
    """

    name: str
    source: str
    model: DenseViT | TimmModel
    classes: tuple[str, ...]
    image_size: int
    preprocessing: dict[str, Any]


def load_model(target: str, run: RunFolder | None, model_name: str | None) -> LoadedModel:
    """Load the network that `target` names; `run` is the run of that name, if there is one.

    `model_name` is the timm model of a weights file that does not name it. Errors: `UserError`.
    """
    if run is not None:
        return _of_run(run, None)
    path = Path(target)
    if path.is_file() and checkpoint_files.is_checkpoint(path):
        return _of_run(RunFolder(path.absolute().parent.parent), path)
    if path.is_file():
        return _of_file(path, model_name)
    on_hub = target.startswith(HUB)
    if path.exists() or ("/" in target and not on_hub):
        raise UserError(f"{target}: no such run, checkpoint or file of weights")
    if not on_hub and not timm.is_model(target.split(".")[0]):
        hint = nearest(target, timm.list_models())
        raise UserError(f"{target}: no run, file or timm model has this name; {hint}")
    try:
        model = create_timm(target, pretrained=True)
    except Exception as error:  # layers and downloads of timm may raise anything
        reason = reason_of(error)
        raise UserError(
            f"{target}: timm cannot load its weights: {reason}; without internet, download them "
            f"elsewhere and give the file, with --model-name {target}"
        ) from None
    name = target.removeprefix(HUB).replace("/", "-")  # it names a folder of results
    return _of_timm(name, target, model, None)


def _of_run(folder: RunFolder, file: Path | None) -> LoadedModel:
    if not folder.config_file.is_file():
        raise UserError(f"{file}: it is not in a run directory: {folder.config_file}: no such file")
    config = folder.config()
    if file is None:
        state = checkpoint.load(folder.checkpoint_folder, folder.ids()[0])
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
    return LoadedModel(name, source, model, classes, model.image_size, model.preprocessing())


def _of_file(path: Path, model_name: str | None) -> LoadedModel:
    """Load a file of timm weights; files of `densevit export` name their model and classes."""
    try:
        check_weights_file(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    about = _metadata(path)
    name = model_name or about.get("architecture")
    if name is None:
        raise UserError(f"{path}: it does not name its model; give --model-name NAME")
    if name.startswith(HUB) and not model_name:
        raise UserError(
            f"{path}: it says that its model is {name}, and a file may not make the Hub be "
            f"asked; if you trust it, give --model-name {name}"
        )
    if not name.startswith(HUB) and not timm.is_model(name.split(".")[0]):
        raise UserError(
            f"{path}: {name}: timm has no such model; {nearest(name, timm.list_models())}"
        )
    kwargs = _arguments(path, about, name)
    classes = _classes(path, about)
    if classes is not None:
        kwargs["num_classes"] = len(classes)
    try:
        model = create_timm(name, pretrained=False, **kwargs)
        model.load_state_dict(load_state_dict(str(path), use_ema=False, weights_only=True))
    except Exception as error:  # timm may raise anything on a foreign file
        reason = reason_of(error)
        raise UserError(f"{path}: cannot be read as weights of {name}: {reason}") from None
    with path.open("rb") as file:
        source = f"{name}, {checkpoint_files.content_digest(file)}"
    return _of_timm(path.stem, source, model, classes)


def _arguments(path: Path, about: Mapping[str, str], model: str) -> dict[str, Any]:
    """Return the `model_kwargs` of a file's metadata: somebody else may have written them."""
    kwargs = _value(path, about, "model_kwargs", {})
    if not isinstance(kwargs, dict):
        raise UserError(f"{path}: its metadata: model_kwargs must be a mapping")
    check_model_kwargs(kwargs, model, f"{path}: its metadata: ")
    return kwargs


def _classes(path: Path, about: Mapping[str, str]) -> tuple[str, ...] | None:
    classes = _value(path, about, "classes", None)
    if classes is None:
        return None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: its metadata: classes must be a list of names")
    return tuple(classes)


def _value(path: Path, about: Mapping[str, str], key: str, default: object) -> Any:
    try:
        return json.loads(about[key]) if key in about else default
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata: {key}: {reason_of(error)}") from None


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from None


def _of_timm(
    name: str, source: str, model: TimmModel, classes: tuple[str, ...] | None
) -> LoadedModel:
    if classes is None:
        if model.num_classes != len(wnids()):
            raise UserError(
                f"{name}: it has {model.num_classes} outputs but no class names; supported: models "
                f"with ImageNet's {len(wnids())} classes and files of `densevit export`"
            )
        classes = wnids()
    # A ViT may have been built for another image size than its pretrained weights: use that size.
    # A model that takes any size is tested at timm's test size, as in its published tables.
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    config = data_config(model, use_test_size=not built)
    size = built[0] if built else config["input_size"][1]
    return LoadedModel(name, source, model, classes, size, preprocessing_of(config))
