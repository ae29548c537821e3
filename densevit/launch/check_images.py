"""Hold the images that a plan names against those that its runs have seen. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from densevit.config.evaluation_names import DRAWN_TESTS
from densevit.config.model_names import image_size
from densevit.config.run_config import RunConfig
from densevit.data.check_contents import check_contents
from densevit.data.datasets import Data, check_fingerprint, open_data
from densevit.data.shared_images import find_shared, refuse_shared
from densevit.evaluate.measured_on import measured_on
from densevit.runs.directory import RunFolder
from densevit.runs.records import FingerprintRecord
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.stored_plan import read_stored_plan
from densevit.utils.console import warn
from densevit.utils.errors import UserError

_IMAGES = (
    "dataset", "data_dir", "label_column", "unlabelled", "benchmarks", "masks", "void", "probes",
)  # fmt: skip


class _Opened(NamedTuple):
    """The images of a run, and the side of its model's input."""

    data: Data
    size: int


def check_measured(plan: Plan) -> None:
    """Check that results belong to the images that the plan names, before they are shown.

    What the last launch of this sweep has checked is taken as it is. Only where the sweep file
    names other images than then, or has not been launched, are they opened and compared. Images
    that are not here cannot be compared: results outlive them.
    Errors: `UserError` for a run whose numbers are of other images.
    """
    try:
        record = read_stored_plan(plan.folder) or {}
    except UserError:  # its next launch writes it again; until then all images are compared
        record = {}
    then = {run["id"]: run.get("config", {}) for run in record.get("runs", ())}
    changed = [run for run in plan.runs if _named(run.config) != _named_in(then.get(run.id, {}))]
    check_images(plan, changed, needed=False, here=True)


def check_images(plan: Plan, runs: Sequence[Run], *, needed: bool, here: bool) -> None:
    """Open the images of runs, and compare them with those that they have seen; finished runs too.

    `needed`: some runs are to start. `here`: see `preflight.check`.
    Errors: `UserError` for images that are needed and missing, and for others than a run has seen.
    """
    file = str(plan.spec.file)
    opened: dict[str, _Opened | None] = {}
    found: dict[str, dict[str, Any] | None] = {}
    for run in runs:
        config, folder, key = run.config, plan.run_folder(run), _data_key(run.config)
        recorded = _recorded(folder, needed)
        if key not in opened and (needed or recorded is not None):
            opened[key] = _open(config, file, needed, here)
        images = opened.get(key)
        if recorded is None or images is None:
            continue
        if key not in found:
            found[key] = _fingerprint(config, images, file, needed)
        measured = found[key]
        if measured is not None:
            check_fingerprint(recorded, measured, folder.path)


def _recorded(folder: RunFolder, needed: bool) -> FingerprintRecord | None:
    """Return what a run was measured on. If it is only to be shown, a damaged record is named, and
    the other runs are checked."""
    try:
        return folder.fingerprint()
    except UserError as error:
        if needed:
            raise
        warn(f"warning: {error}")
        return None


def _named(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(include=set(_IMAGES))


def _named_in(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record.get(name) for name in _IMAGES}


def _open(config: RunConfig, file: str, needed: bool, here: bool) -> _Opened | None:
    """Open the images of a run; None if they are gone and not needed: results outlive them.

    Also return None if a variable in a path is set only inside a job.
    """
    paths = _paths(config)
    if not here and any("$" in (path or "") for path in paths.values()):
        return None
    try:
        size = _input_size(config)
        data = open_data(config, size)
        if needed and here:  # once for all runs, which find the result in the cache
            check_contents(data)
        elif needed and data.val is not None:
            refuse_shared(find_shared(data.train, data.val.images), "val")
    except UserError as error:
        # What is there and does not fit is a mistake: numbers of others would be shown for it.
        if needed or _all_exist(paths):
            raise UserError(f"{file}: {error}") from None
        return None
    return _Opened(data, size)


def _paths(config: RunConfig) -> dict[str, str | None]:
    """Return the places of a run's images by name, None for those in $DENSEVIT_DATA."""
    paths = {
        name: given if isinstance(given, str | None) else given.path
        for name, given in config.benchmarks.items()
    }
    if config.dataset not in DRAWN_TESTS:
        paths[config.dataset] = config.data_dir
    if config.masks not in (None, *DRAWN_TESTS):
        paths["masks"] = config.masks
    return {name: path and os.path.expandvars(path) for name, path in paths.items()}


def _all_exist(paths: Mapping[str, str | None]) -> bool:
    root = os.environ.get("DENSEVIT_DATA", "/dev/null")
    places = (Path(path or f"{root}/{name}") for name, path in paths.items())
    return all(place.expanduser().exists() for place in places)


def _fingerprint(
    config: RunConfig, images: _Opened, file: str, needed: bool
) -> dict[str, Any] | None:
    """Return what a run is measured on; None if its masks are gone and not needed."""
    try:
        return measured_on(config, images.data, images.size)
    except UserError as error:
        if needed:
            raise UserError(f"{file}: {error}") from None
        return None


def _input_size(config: RunConfig) -> int:
    """Return the image size from the model name, else from timm, whose import takes seconds."""
    size = image_size(config)
    if size is None:
        from densevit.models.backbone import check_model

        size = check_model(config)
    return size


def _data_key(config: RunConfig) -> str:
    model = (config.model_name, config.model_kwargs)  # they decide the image size
    images = [getattr(config, name) for name in _IMAGES]
    return repr((images, config.batch_size, *model))
