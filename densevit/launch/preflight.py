"""Check models, data and library versions before anything is started."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from densevit import __version__
from densevit.config.model_names import image_size
from densevit.config.run_config import RunConfig
from densevit.data.datasets import Data, check_fingerprint, open_data
from densevit.data.shared_images import find_shared, refuse_shared
from densevit.launch.decide import RunActions
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
    opened: dict[str, Data | None] = {}
    for run in plan.runs:
        key = _data_key(run.config)
        if key not in opened:
            opened[key] = _open(run.config, file, bool(actions.to_run), here)
        data, folder = opened[key], plan.run_folder(run)
        recorded = read_json(folder.fingerprint_file)
        if recorded is not None and data is not None:
            check_fingerprint(recorded, data.fingerprint(), folder.path)


def _check_models(runs: tuple[Run, ...], file: str, here: bool) -> None:
    """Build each model without weights, unless the cache lists it as buildable."""
    known = _known_models()
    models = {_model_key(run.config): run.config for run in runs}
    unknown = {key: config for key, config in models.items() if key not in known}
    if here and any(run.config.device == "cuda" for run in runs):
        unknown = models
    if not unknown:
        return
    from densevit.models.vit import check_model  # imports torch: seconds
    from densevit.train.preflight import check_device

    for config in unknown.values():
        try:
            if here:
                check_device(config)
            check_model(config)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
    with suppress(OSError):  # the cache only saves time
        write_json(_known_models_file(), dict.fromkeys({**known, **unknown}, True))


def _model_key(config: RunConfig) -> str:
    """Return a digest of everything that decides whether a model can be built."""
    fields = [
        "model_name", "model_kwargs", "drop_path", "sampled_patches", "query_patches",
        "cl_mode", "dense_negatives", "lambda_weight",  # they decide which fields apply
    ]  # fmt: skip
    text = repr([_versions(), __version__, *(getattr(config, name) for name in fields)])
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


def _open(config: RunConfig, file: str, needed: bool, here: bool) -> Data | None:
    """Open the data of a run; return None if it is gone and not needed: results outlive it.

    Also return None if a variable in a path is set only inside a job.
    """
    sets = [s if isinstance(s, str) else (s and s.path) or "" for s in config.benchmarks.values()]
    paths = [config.data_dir or "", *sets]
    if not here and any("$" in os.path.expandvars(path) for path in paths):
        return None
    try:
        data = open_data(config, _input_size(config))
        if needed and data.val is not None:
            refuse_shared(find_shared(data.train, data.val.images), "val")
        return data
    except UserError as error:
        if needed:
            raise UserError(f"{file}: {error}") from None
        return None


def _input_size(config: RunConfig) -> int:
    """Return the image size from the model name, else from timm, whose import takes seconds."""
    size = image_size(config)
    if size is None:
        from densevit.models.vit import check_model

        size = check_model(config)
    return size


def _data_key(config: RunConfig) -> str:
    model = (config.model_name, config.model_kwargs)  # they decide the image size
    images = (config.dataset, config.data_dir, config.label_column, config.unlabelled)
    return repr((*images, config.benchmarks, config.batch_size, *model))
