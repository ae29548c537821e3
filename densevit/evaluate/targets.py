"""Targets of `densevit eval`: test sets and probes, resolved from command-line arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from densevit.config.evaluation_names import CLEAN, benchmark_names
from densevit.config.probes import probes_by_name
from densevit.config.run_config import NAME_PATTERN, RunConfig
from densevit.data.check_contents import check_apart
from densevit.data.datasets import Data, check_fingerprint, open_data, open_splits
from densevit.data.image import Images
from densevit.data.known_benchmarks import LAYOUTS
from densevit.data.open_benchmark import open_benchmark, resolved
from densevit.data.shapes import dataset
from densevit.data.test_set import TestSet
from densevit.evaluate.probes.masks import check_mask_splits, masked_sets
from densevit.models.load import LoadedModel
from densevit.runs.directory import RunFolder
from densevit.utils.errors import UserError


class GivenData(NamedTuple):
    """What the command line says of the user's own sets: `classes` (how test sets name them),
    `label_column` of Hugging Face data sets, and the `void` values of masks."""

    classes: str | None = None
    label_column: str | None = None
    void: Sequence[int] | None = None


@dataclass(frozen=True)
class EvalRequest:
    """A request to evaluate: test sets, unshifted ones first, and train and val of each probe."""

    test_sets: Sequence[TestSet]
    probes: Mapping[str, tuple[Images, Images]]
    seed: int


def resolve_targets(
    targets: Sequence[str],
    run: RunFolder | None,
    network: LoadedModel,
    given: GivenData,
    elsewhere: bool,
) -> EvalRequest:
    """Resolve NAME or NAME=PATH arguments to test sets and probes; `run` is the network's run.

    `given` is said of the sets with a PATH. `elsewhere`: results are not written to the run.
    Errors: `UserError` if something is missing or would overwrite the run's own results.
    """
    config = None if run is None else run.config()
    paths = _paths(targets, config, elsewhere)
    if not paths and config is None:
        raise UserError(
            f"{network.name}: no benchmark is given; give NAME or NAME=PATH: one of "
            f"{', '.join((*LAYOUTS, *probes_by_name()))}, or a test set of your own"
        )
    own = _open_own(run, config, network, paths)
    if not paths and config is not None:
        paths = dict.fromkeys(benchmark_names(config))
    if not paths:
        raise UserError(
            f"{network.name}: was trained without labels, and has no test sets of its own; give "
            f"train/ and val/ to a probe: knn=FOLDER --to DIR"
        )
    test_sets = []
    for name, path in paths.items():
        if name in probes_by_name():
            continue
        if path is None and own is not None and name in own.test_sets:
            test_sets.append(own.test_sets[name])
        else:
            record = {"path": path, "classes": given.classes if name not in LAYOUTS else None}
            record["label_column"] = given.label_column
            test_sets.append(open_benchmark(name, record, network.classes, name))
    if targets:
        test_sets.sort(key=lambda test_set: test_set.name not in CLEAN)
    probes = {name: path for name, path in paths.items() if name in probes_by_name()}
    seed = 0 if config is None else config.seed
    return EvalRequest(test_sets, _probe_data(probes, config, own, network, given), seed)


def _paths(
    targets: Sequence[str], config: RunConfig | None, elsewhere: bool
) -> dict[str, str | None]:
    """Return the path of each name, None without one."""
    paths: dict[str, str | None] = {}
    for target in targets:
        name, _, path = target.partition("=")
        if not re.fullmatch(NAME_PATTERN, name) or name == "train":
            raise UserError(
                f"{target}: must be NAME or NAME=PATH; a name has letters, digits, . _ -"
            )
        if name in paths:
            raise UserError(f"{target}: {name} is given twice")
        if path and config is not None and not elsewhere:
            if name in benchmark_names(config):
                raise UserError(
                    f"{target}: {name} is one of the run's own; give another name, or --to DIR"
                )
            if name in probes_by_name():
                raise UserError(f"{target}: a path other than the run's own needs --to DIR")
        paths[name] = path or None
    return paths


def _open_own(
    run: RunFolder | None,
    config: RunConfig | None,
    network: LoadedModel,
    paths: Mapping[str, str | None],
) -> Data | None:
    """Open a run's data if something is evaluated on it.

    Errors: `UserError` if the data changed since training.
    """
    if run is None or config is None:
        return None
    without_path = {name for name, path in paths.items() if path is None}
    if paths and not without_path & {*benchmark_names(config), *probes_by_name()}:
        return None
    data = open_data(config, network.image_size)
    if tuple(data.train.classes) != network.classes:
        raise UserError(f"{run.path}: the classes of its images have changed since training")
    fingerprint = run.fingerprint()
    if fingerprint is not None:
        check_fingerprint(fingerprint, data.fingerprint(), run.path)
    return data


def _probe_data(
    paths: Mapping[str, str | None],
    config: RunConfig | None,
    own: Data | None,
    network: LoadedModel,
    given: GivenData,
) -> dict[str, tuple[Images, Images]]:
    """Find train and val of each probe, and check all masks before any evaluation."""
    masks = [name for name in paths if probes_by_name()[name].masks]
    labels = [name for name in paths if name not in masks]
    found: dict[str, tuple[Images, Images]] = {}
    for names, what in ((labels, "images"), (masks, "masks")):
        if len({paths[name] for name in names}) > 1:
            raise UserError(f"{', '.join(names)}: need the same {what}; give one PATH")
    if labels:
        found |= dict.fromkeys(labels, _labeled(paths[labels[0]], own, labels[0], given))
    if masks:
        found |= dict.fromkeys(masks, _masked(paths[masks[0]], config, network, masks[0], given))
    return {name: found[name] for name in paths}


def _labeled(
    path: str | None, own: Data | None, name: str, given: GivenData
) -> tuple[Images, Images]:
    if path is not None:
        return _splits(resolved(path, name), name, given.label_column)
    if own is not None and own.val is not None:
        return own.train, own.val
    root = os.environ.get("DENSEVIT_DATA")
    if not root:
        raise UserError(
            f"{name}: no images are given; give {name}=PATH, a folder with train/ and val/, or set "
            f"$DENSEVIT_DATA to a folder that holds imagenet/"
        )
    return _splits(Path(root).expanduser().absolute() / "imagenet", name, None)


def _splits(folder: Path, name: str, label_column: str | None) -> tuple[Images, Images]:
    train, val = open_splits(folder, name, label_column)
    check_apart(train, val.images, name)
    return train, val


def _masked(
    path: str | None, config: RunConfig | None, network: LoadedModel, name: str, given: GivenData
) -> tuple[Images, Images]:
    config = config or RunConfig(dataset="other")
    if path is not None:
        void = config.void if given.void is None else list(given.void)
        config = config.model_copy(update={"masks": path, "void": void})
    elif not config.masks and config.dataset not in dataset.SETS:
        raise UserError(
            f"{name}: no masks are given; give {name}=PATH: a folder with images/ and masks/ in "
            f"train/ and val/, one in Pascal VOC's layout, or shapes"
        )
    splits = masked_sets(config, network.image_size)
    if config.masks is not None and config.masks not in dataset.SETS:
        check_mask_splits(*splits)
    return splits
