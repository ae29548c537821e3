"""Initial weights of a run, from a file or another run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from densevit.runs import checkpoint
from densevit.runs.directory import RunFolder
from densevit.train.learner import Learner
from densevit.utils.errors import UserError, reason_of
from densevit.utils.files import read_json
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from timm.models import load_state_dict  # noqa: E402
from timm.models.vision_transformer import checkpoint_filter_fn  # noqa: E402

log = logging.getLogger("densevit")
_MOST_NAMES = 8  # in a message
_BACKBONE = "backbone."


def load_initial(learner: Learner, source: str) -> None:
    """Load the initial weights from a run directory, a run's checkpoint, or a timm file.

    Position embeddings are resized to the network's grid, as in timm. A tensor of another shape
    (the head, if the classes differ) keeps its random values. Missing and unexpected tensors are
    logged by name.

    Errors: `UserError` that names the source if it is missing, damaged, or fits no tensor of the
    backbone.
    """
    model = learner.model
    own = model.state_dict()
    loaded = _read(_file(source), source, model.backbone)
    fitting = {n: v for n, v in loaded.items() if n in own and own[n].shape == v.shape}
    if not any(name.startswith(_BACKBONE) for name in fitting):
        raise UserError(
            f"init_checkpoint: {source}: none of its {len(loaded)} tensors fits the network"
        )
    model.load_state_dict(fitting, strict=False)
    if learner.averaged is not None:
        learner.averaged.load_state_dict(model.state_dict())
    other = [n for n in own if n in loaded and n not in fitting]
    missing = [n for n in own if n not in loaded]
    unexpected = [n for n in loaded if n not in own]
    log.info("init_checkpoint: %d of %d tensors from %s", len(fitting), len(own), source)
    for what, names in (
        ("of another shape, so random", other), ("missing, so random", missing),
        ("unexpected, so ignored", unexpected),
    ):  # fmt: skip
        if names:
            more = f", ... ({len(names)} in all)" if len(names) > _MOST_NAMES else ""
            log.info("init_checkpoint: %s: %s%s", what, ", ".join(names[:_MOST_NAMES]), more)


def weights_fingerprint(folder: RunFolder, source: str) -> dict[str, str]:
    """Return name and SHA-256 of the file with the initial weights.

    The file is read until the run has a checkpoint; then the stored values are returned, because
    the file may change or disappear. Errors: as in `load_initial`.
    """
    stored = (read_json(folder.fingerprint_file) or {}).get("init_checkpoint")
    if stored is not None and checkpoint.newest_first(folder.checkpoint_folder):
        return {"name": stored["name"], "sha256": stored["sha256"]}
    path = _file(source)
    with path.open("rb") as file:
        return {"name": path.name, "sha256": checkpoint.digest(file)}


def _file(source: str) -> Path:
    path = Path(source)
    if path.is_dir():
        found = checkpoint.newest_first(path / "checkpoint") or checkpoint.newest_first(path)
        if not found:
            raise UserError(f"init_checkpoint: {source}: the folder holds no checkpoint of a run")
        return found[0]
    if not path.is_file():
        raise UserError(f"init_checkpoint: {source}: no such file or run directory")
    return path


def _read(path: Path, source: str, backbone: torch.nn.Module) -> dict[str, Tensor]:
    """Read the tensors of a file, with their names in `DenseViT`."""
    try:
        if checkpoint.is_checkpoint(path):
            state = checkpoint.read(path)["model"]
            heads = {n: v for n, v in state.items() if not n.startswith(_BACKBONE)}
            inside = {n.removeprefix(_BACKBONE): v for n, v in state.items() if n not in heads}
        else:
            inside, heads = load_state_dict(str(path), use_ema=False, weights_only=True), {}
        inside = checkpoint_filter_fn(
            dict(inside),
            backbone,  # type: ignore[arg-type]  # timm names one ViT, takes all
        )
    except Exception as error:  # the reader may raise anything on a foreign file
        reason = reason_of(error)
        raise UserError(f"init_checkpoint: {source}: cannot be read: {reason}") from None
    return {f"{_BACKBONE}{name}": value for name, value in inside.items()} | heads
