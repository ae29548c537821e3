"""The weights that a run begins with, from a file or another run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from densevit import checkpoint
from densevit.errors import UserError
from densevit.objective import Learner
from densevit.rundir import RunFolder, read_json
from densevit.torchvision_guard import ensure_torchvision

ensure_torchvision()

from timm.models import load_state_dict  # noqa: E402
from timm.models.vision_transformer import checkpoint_filter_fn  # noqa: E402

log = logging.getLogger("densevit")
_SHOWN = 8  # names in a message
_INSIDE = "backbone."


def load_initial(learner: Learner, source: str) -> None:
    """Begin with the weights of a run directory, a checkpoint of one, or a file of timm's.

    Position embeddings are resized to the network's grid, as timm does. A tensor of another shape
    (the head, when the classes differ) is left as it is drawn. What is missing and what is left
    over is logged by name.

    Errors: `UserError` naming the source if it is missing, damaged, or has nothing in common with
    the network.
    """
    model = learner.model
    wanted = model.state_dict()
    found = _read(_file(source), source, model.backbone)
    fitting = {n: v for n, v in found.items() if n in wanted and wanted[n].shape == v.shape}
    if not any(name.startswith(_INSIDE) for name in fitting):
        raise UserError(
            f"init_checkpoint: {source}: none of its {len(found)} tensors fits the network"
        )
    model.load_state_dict(fitting, strict=False)
    if learner.averaged is not None:
        learner.averaged.load_state_dict(model.state_dict())
    other = [n for n in wanted if n in found and n not in fitting]
    missing = [n for n in wanted if n not in found]
    unexpected = [n for n in found if n not in wanted]
    log.info("init_checkpoint: %d of %d tensors from %s", len(fitting), len(wanted), source)
    for what, names in (
        ("of another shape, drawn anew", other), ("missing, drawn anew", missing),
        ("unexpected, left out", unexpected),
    ):  # fmt: skip
        if names:
            more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
            log.info("init_checkpoint: %s: %s%s", what, ", ".join(names[:_SHOWN]), more)


def begun_with(folder: RunFolder, source: str) -> dict[str, str]:
    """What a run remembers of the file that it began with.

    Read anew until the run has a checkpoint, which then holds what it needs: the file may change or
    go. Errors: as in `load_initial`.
    """
    held = (read_json(folder.fingerprint_file) or {}).get("init_checkpoint")
    if held is not None and checkpoint.newest_first(folder.checkpoint_folder):
        return held
    path = _file(source)
    with path.open("rb") as file:
        return {"name": path.name, "sha256": checkpoint.digest(file)}


def _file(source: str) -> Path:
    path = Path(source)
    if path.is_dir():
        found = checkpoint.newest_first(path / "checkpoint") or checkpoint.newest_first(path)
        if not found:
            raise UserError(f"init_checkpoint: {source}: holds no checkpoint of a run")
        return found[0]
    if not path.is_file():
        raise UserError(f"init_checkpoint: {source}: no such file or run directory")
    return path


def _read(path: Path, source: str, backbone: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors of a file under the names that they have in `DenseViT`."""
    try:
        if checkpoint.is_checkpoint(path):
            state = checkpoint.read(path)["model"]
            heads = {n: v for n, v in state.items() if not n.startswith(_INSIDE)}
            inside = {n.removeprefix(_INSIDE): v for n, v in state.items() if n not in heads}
        else:
            inside, heads = load_state_dict(str(path), use_ema=False, weights_only=True), {}
        inside = checkpoint_filter_fn(dict(inside), backbone)
    except Exception as error:  # whatever part of the reader meets a foreign file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"init_checkpoint: {source}: cannot be read: {reason}") from None
    return {f"{_INSIDE}{name}": value for name, value in inside.items()} | heads
