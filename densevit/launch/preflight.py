"""Check models, data and library versions before anything is started."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from densevit import __version__
from densevit.config.evaluation_names import DRAWN_TESTS
from densevit.config.identity import science
from densevit.config.loss_modes import loss_weights, self_supervised
from densevit.config.run_config import RunConfig
from densevit.launch.check_images import check_images
from densevit.launch.decide import RunActions
from densevit.runs.checkpoint_files import newest_first
from densevit.runs.initial_file import check_initial
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json


def check(plan: Plan, actions: RunActions, *, here: bool = True) -> None:
    """Check models and data of the runs, before anything is created.

    `here`: the runs execute on this machine; elsewhere devices may differ, and the data path may
    be known only inside a job.
    Errors: `UserError` for a model that cannot be built, missing or mismatched data, or data files
    that differ from those that a run of the plan has used.
    """
    file = str(plan.spec.file)
    if actions.to_run:
        _check_models(actions.to_run, file, here)
        _check_initial_weights(plan, actions.to_run, here)
    check_images(plan, plan.runs, needed=bool(actions.to_run), here=here)


def _check_models(runs: tuple[Run, ...], file: str, here: bool) -> None:
    """Rehearse a run of each model and kind of loss, unless the cache lists it as working."""
    known = _known_models()
    models = {_model_key(run.config): run.config for run in runs}
    unknown = {key: config for key, config in models.items() if key not in known}
    if here and any(run.config.device == "cuda" for run in runs):
        unknown = models
    if not unknown:
        return
    from densevit.train.preflight import check_device  # imports torch: seconds
    from densevit.train.rehearsal import rehearse

    for key, config in unknown.items():
        try:
            if here:
                check_device(config)
            if key not in known:
                rehearse(config)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
    with suppress(OSError):  # the cache only saves time
        write_json(_known_models_file(), dict.fromkeys({**known, **unknown}, True))


def _check_initial_weights(plan: Plan, runs: Sequence[Run], here: bool) -> None:
    """Check that initial weights fit the networks of runs that have not begun."""
    checked: set[tuple[Any, ...]] = set()
    for run in runs:
        config, folder = run.config, plan.run_folder(run)
        source = config.init_checkpoint
        key = (source, config.init_share, config.model_name, repr(config.model_kwargs))
        if source is None or key in checked or newest_first(folder.checkpoint_folder):
            continue
        checked.add(key)
        if not here and not Path(source).exists():
            continue  # it may be known only inside a job
        from densevit.train.rehearsal import rehearse_loading

        try:
            check_initial(config)
            rehearse_loading(config)
        except UserError as error:
            raise UserError(f"{plan.spec.file}: {error}") from None


# They change no shape and no choice between computations, or the key has what they decide.
_IRRELEVANT = {
    "cl_mode", "lambda_weight", "contrastive_weight_adaptive", "joint_dense_weight", "dataset",
    "epochs", "warmup_epochs", "learning_rate", "batch_size", "weight_decay", "grad_clip",
    "temperature", "momentum", "queue_size", "precision", "tf32", "pretrained", "init_checkpoint",
    "init_sha256",
}  # fmt: skip


def _model_key(config: RunConfig) -> str:
    """Return a digest of everything that decides whether a model can be trained."""
    fields = {n: value for n, value in science(config).items() if n not in _IRRELEVANT}
    losses = sorted(loss_weights(config)), self_supervised(config)
    switches = [bool(fields.pop(name, 0)) for name in ("mixup", "label_smoothing", "drop_path")]
    switches += [fields.pop("layer_decay", 1.0) != 1.0, config.gradient_checkpointing]
    drawn = config.dataset if config.dataset in DRAWN_TESTS else ""
    text = repr([_versions(), __version__, losses, switches, drawn, sorted(fields.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _versions() -> list[str]:
    return [metadata.version(name) for name in ("timm", "torch")]


def _known_models_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "densevit" / "models.json"


def _known_models() -> dict[str, Any]:
    try:
        return read_json(_known_models_file()) or {}
    except UserError:
        return {}
