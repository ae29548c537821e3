"""What `densevit eval` is asked: test sets and probes, from the words of its command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from densevit.config import NAME_PATTERN, PROBES, RunConfig
from densevit.data.benchmarks import TestSet, open_benchmark, resolved
from densevit.data.layouts import LAYOUTS
from densevit.data.names import CLEAN, benchmark_names
from densevit.data.pictures import Images
from densevit.data.sources import Data, check_fingerprint, open_data, open_splits
from densevit.errors import UserError
from densevit.frozen.masks import MaskedImages, check_masks
from densevit.named import Named
from densevit.probes import masked_sets
from densevit.rundir import RunFolder, read_json


@dataclass(frozen=True)
class Asked:
    """Test sets, those of unshifted pictures first; and probes by name, with what these need."""

    sets: Sequence[TestSet]
    probes: Sequence[str]
    splits: Callable[[], tuple[Images, TestSet]]
    masked: Callable[[], tuple[MaskedImages, MaskedImages]]
    seed: int


def asked_for(
    words: Sequence[str], run: RunFolder | None, named: Named, classes: str | None, elsewhere: bool
) -> Asked:
    """What the words NAME or NAME=PATH ask of a network; `run` is the one that it is of.

    `classes` is that of the user's own test sets; `elsewhere`: the results do not go to the run.
    Errors: `UserError` for what is not there, or would take the place of the run's own numbers.
    """
    config, own = None, None
    if run is not None:
        config = run.config()
        mine = {*benchmark_names(config), *PROBES}
        own = _own_data(run, config, named) if not words or mine & set(words) else None
        if not words:
            probes = [name for name in benchmark_names(config) if name in PROBES]
            return _checked([own.val, *own.benchmarks.values()], probes, config, own, {}, named)
    elif not words:
        raise UserError(
            f"{named.name}: on what? give NAME or NAME=PATH, of {', '.join((*LAYOUTS, *PROBES))}, "
            f"or a test set of your own"
        )
    sets, places = [], {}
    for word in words:
        name, _, path = word.partition("=")
        if not re.match(NAME_PATTERN, name) or name == "train":
            raise UserError(f"{word}: wanted NAME or NAME=PATH; a name has letters, digits, . _ -")
        if name in places or name in [other.name for other in sets]:
            raise UserError(f"{word}: {name} is given twice")
        if path and config is not None and not elsewhere:
            if name in benchmark_names(config):
                raise UserError(
                    f"{word}: {name} is one of the run's own; give another name, or --to DIR"
                )
            if name in PROBES:
                raise UserError(f"{word}: on other pictures than the run's own: give --to DIR")
        if name in PROBES:
            places[name] = path or None
        elif not path and own is not None and name in (own.val.name, *own.benchmarks):
            sets.append(own.val if name == own.val.name else own.benchmarks[name])
        else:
            how = classes if name not in LAYOUTS else None
            record = {"path": path or None, "classes": how}
            sets.append(open_benchmark(name, record, named.classes, name))
    sets.sort(key=lambda each: each.name not in CLEAN)
    return _checked(sets, list(places), config, own, places, named)


def _own_data(run: RunFolder, config: RunConfig, named: Named) -> Data:
    """The pictures of a run. Errors: `UserError` if they are not those that it has seen."""
    data = open_data(config, named.image_size)
    if tuple(data.train.classes) != named.classes:
        raise UserError(f"{run.path}: the classes of its pictures have changed since")
    held = read_json(run.fingerprint_file)
    if held is not None:
        check_fingerprint(held, data.fingerprint(), run.path)
    return data


def _checked(
    sets: Sequence[TestSet],
    probes: Sequence[str],
    config: RunConfig | None,
    own: Data | None,
    places: dict[str, str | None],
    named: Named,
) -> Asked:
    """With the pictures of the probes found, and all masks read, before anything is evaluated."""
    splits = masked = None
    of_pictures = [name for name in probes if name != "dense-probe"]
    if of_pictures:
        paths = {places.get(name) for name in of_pictures}
        if len(paths) > 1:
            raise UserError(f"{', '.join(of_pictures)}: want the same pictures; give one PATH")
        splits = _splits(paths.pop(), own, of_pictures[0])
    if "dense-probe" in probes:
        masked = _masked(places.get("dense-probe"), config, named)
    seed = 0 if config is None else config.seed
    return Asked(sets, probes, lambda: splits, lambda: masked, seed)


def _splits(path: str | None, own: Data | None, name: str) -> tuple[Images, TestSet]:
    if path is not None:
        return open_splits(resolved(path, name), name)
    if own is not None:
        return own.train, own.val
    root = os.environ.get("DENSEVIT_DATA")
    if not root:
        raise UserError(
            f"{name}: on which pictures? give {name}=PATH, a folder with train/ and val/, or set "
            f"$DENSEVIT_DATA to a folder that holds imagenet/"
        )
    return open_splits(Path(root).expanduser().absolute() / "imagenet", name)


def _masked(
    path: str | None, config: RunConfig | None, named: Named
) -> tuple[MaskedImages, MaskedImages]:
    if path is None and (config is None or not (config.masks or config.dataset == "shapes")):
        raise UserError(
            "dense-probe: on which masks? give dense-probe=PATH: a folder with images/ and masks/ "
            "in train/ and val/, one in Pascal VOC's layout, or shapes"
        )
    if path is not None:
        config = (config or RunConfig(dataset="other")).model_copy(update={"masks": path})
    found = masked_sets(config, named.image_size)
    if config.masks not in (None, "shapes"):
        for masks in found:
            check_masks(masks)
    return found
