"""Initial weights of a run, from a file or another run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from densevit.config.run_config import RunConfig
from densevit.models.initial_weights import fitting_names, read_initial, some_names
from densevit.models.vit import DenseViT
from densevit.runs.checkpoint_files import newest_first
from densevit.runs.directory import RunFolder
from densevit.runs.initial_file import check_initial
from densevit.train.learner import Learner

log = logging.getLogger("densevit")

_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.")


def load_initial(learner: Learner, source: str) -> None:
    """Load the initial weights from a run directory, a run's checkpoint, or a timm file.

    Position embeddings are resized to the network's grid, as in timm. A tensor of another shape
    (the head, if the classes differ) keeps its random values. Missing and unexpected tensors are
    logged by name, and so is a prefix of others' names that is stripped.

    Errors: `UserError` that names the source if it is missing, damaged, or holds less of the
    backbone than the field `init_share`.
    """
    model = learner.model
    own = model.state_dict()
    initial = read_initial(model, source, learner.config.init_share)
    loaded = initial.tensors
    fitting = fitting_names(model, loaded)
    model.load_state_dict({name: loaded[name] for name in fitting}, strict=False)
    if learner.averaged is not None:
        learner.averaged.load_state_dict(model.state_dict())
    log.info("init_checkpoint: %d of %d tensors from %s", len(fitting), len(own), source)
    if initial.prefix:
        log.info("init_checkpoint: its tensors are those named %s...", initial.prefix)
    _warn_of_blocks(model, loaded)
    for what, names in (
        ("of another shape, so random", [n for n in own if n in loaded and n not in fitting]),
        ("missing, so random", [n for n in own if n not in loaded]),
        ("unexpected, so ignored", [n for n in loaded if n not in own]),
    ):
        if names:
            log.info("init_checkpoint: %s: %s", what, some_names(names))


def _warn_of_blocks(model: DenseViT, loaded: Iterable[str]) -> None:
    """Warn of blocks of the file that a shallower network does not have."""
    found = {int(match[1]) for name in loaded if (match := _BLOCK.match(name))}
    own = {int(match[1]) for name in model.state_dict() if (match := _BLOCK.match(name))}
    if own and found - own:
        log.warning(
            "init_checkpoint: its network has %d blocks, and this one the first %d of them",
            len(found | own), len(own),
        )  # fmt: skip


def initial_fingerprint(folder: RunFolder, config: RunConfig) -> dict[str, str]:
    """Return the digest of the initial weights.

    The file is checked until the run has a checkpoint; then it may change or disappear. Errors: see
    `check_initial`.
    """
    if not newest_first(folder.checkpoint_folder):
        check_initial(config)
    return {"sha256": str(config.init_sha256)}
