"""Export a run's network to a safetensors file that timm loads."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from densevit.models.vit import DenseViT
from densevit.runs import checkpoint
from densevit.runs.directory import RunFolder
from densevit.utils.errors import UserError
from densevit.utils.files import replacing


def export_timm(folder: RunFolder, target: Path) -> str:
    """Write a run's backbone and classifier as safetensors with timm's parameter names.

    Returns the Python expression that loads it. Errors: `UserError` if the run has no checkpoint.
    """
    config = folder.config()
    state = checkpoint.load(folder.checkpoint_folder, folder.ids()[0])
    if state is None:
        raise UserError(f"{folder.path}: holds no checkpoint yet")
    classes = len(state["classes"])
    model = DenseViT(config, classes, pretrained=False)
    model.load_state_dict(state["model"])
    weights = {name: value.contiguous() for name, value in model.backbone.state_dict().items()}
    about = {
        "architecture": config.model_name,
        "classes": json.dumps(state["classes"]),
        "model_kwargs": json.dumps(config.model_kwargs),
        "run": folder.path.name,
        "step": str(state["step"]),
        **{key: json.dumps(value) for key, value in model.preprocessing().items()},
    }
    with replacing(target) as temporary:
        save_file(weights, temporary, metadata=about)
    arguments = [repr(config.model_name), f"num_classes={classes}"]
    arguments += [f"{key}={value!r}" for key, value in config.model_kwargs.items()]
    return f"timm.create_model({', '.join(arguments)}, checkpoint_path={str(target)!r})"
