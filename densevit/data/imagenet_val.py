"""Read ImageNet's validation images as published: one flat folder, labels in a file.

The label file is in the folder, beside it, or in the development kit's `data/`. The three usual
label files number the classes differently:

- `LOC_val_solution.csv` (Kaggle): a line per image, `ILSVRC2012_val_00000001,n01751748 111 ...`;
- `ILSVRC2012_validation_ground_truth.txt` (development kit): class numbers in image order, which
  are *not* indices of the sorted WordNet ids: `meta.mat` defines them;
- `imagenet_2012_validation_synset_labels.txt`: WordNet ids in image order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from densevit.data import imagenet
from densevit.data.image_files import Skipped, is_hidden, reason_to_skip
from densevit.data.image_folder import FolderImages
from densevit.utils.errors import UserError

_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
_KAGGLE = "LOC_val_solution.csv"
_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
_SYNSETS = "imagenet_2012_validation_synset_labels.txt"
TRUTHS = (_KAGGLE, _DEVKIT, _SYNSETS)


def image_number(name: str) -> int | None:
    """Return the number, from 1, of an ImageNet validation image; None for another name."""
    found = _NAME.fullmatch(name.rpartition("/")[2])
    return int(found[1]) if found else None


def is_flat(path: Path) -> bool:
    """Return True if a folder holds ImageNet's validation images and no class folders."""
    if not path.is_dir():
        return False
    with os.scandir(path) as entries:
        shown = [entry for entry in entries if not is_hidden(entry.name)]
        kinds = [(e.is_dir(), image_number(e.name) is not None) for e in shown]
    folders = any(is_folder for is_folder, _ in kinds)
    return not folders and any(is_picture for _, is_picture in kinds)


def open_flat(path: Path, source: str) -> FolderImages:
    """List the images of a flat folder, sorted; the classes are the sorted WordNet ids.

    Errors: `UserError` if no label file is found, or it lacks an image or names an unknown class.
    """
    entries = sorted(os.listdir(path))  # noqa: PTH208, names
    names = [name for name in entries if image_number(name) is not None]
    skipped = [
        Skipped(name, reason_to_skip(name) or "without the name of a validation image")
        for name in entries
        if image_number(name) is None and name not in TRUTHS
    ]
    truth, wnid_of = _truth(path, source)
    place = {wnid: index for index, wnid in enumerate(imagenet.wnids())}
    labels = []
    for name in names:
        wnid = wnid_of.get(image_number(name) or 0)
        if wnid not in place:
            fault = "has no label for" if wnid is None else f"gives {wnid} to"
            raise UserError(f"{source}: {truth}: {fault} {name}")
        labels.append(place[wnid])
    return FolderImages(path, imagenet.wnids(), tuple(names), tuple(labels), tuple(skipped))


def labels_of(path: Path, source: str) -> Mapping[int, str]:
    """Return the WordNet id by validation image number, from a label file in or near `path`."""
    return _truth(path, source)[1]


def _truth(path: Path, source: str) -> tuple[Path, Mapping[int, str]]:
    places = [path, path.parent]
    for each in (path, path.parent):
        places += [*sorted(each.glob("*devkit*/data")), each / "data"]
    for name, read in ((_KAGGLE, _kaggle), (_SYNSETS, _synsets), (_DEVKIT, _devkit)):
        for place in places:
            if (place / name).is_file():
                try:
                    return place / name, read(place / name)
                except (OSError, ValueError, KeyError, IndexError) as error:
                    raise UserError(f"{source}: {place / name}: cannot be read: {error}") from None
    raise UserError(
        f"{source}: {path}: holds images without class folders, and no label file lies in it or "
        f"beside it; give one of {', '.join(TRUTHS)}"
    )


def _kaggle(file: Path) -> Mapping[int, str]:
    found = {}
    for line in file.read_text().splitlines():
        name, _, label = line.partition(",")
        number = image_number(f"{name}.JPEG")
        if number is not None:
            found[number] = label.split()[0]
    return found


def _synsets(file: Path) -> Mapping[int, str]:
    return dict(enumerate(file.read_text().split(), 1))


def _devkit(file: Path) -> Mapping[int, str]:
    from scipy.io import loadmat

    meta = file.with_name("meta.mat")
    if not meta.is_file():
        raise ValueError(f"{meta}: no such file; it maps the label numbers to classes")
    table = loadmat(meta, squeeze_me=True)["synsets"]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    return {place: wnids[int(n)] for place, n in enumerate(file.read_text().split(), 1)}
