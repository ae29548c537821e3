"""The correspondences that a run keeps of a few of its val pictures, before and after training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densevit.correspond import Correspondences, Views, correspondences, views_of
from densevit.data.pictures import Images
from densevit.errors import UserError
from densevit.model import DenseViT
from densevit.rundir import replacing

PICTURES = 3
GOLDEN = (5**0.5 - 1) / 2
_COLUMNS = ("partner", "similarity", "truth", "right")


def keep_matches(path: Path, model: DenseViT, images: Images) -> None:
    """Write the matches of `PICTURES` pictures, spread over a set, unless they are there.

    By the backbone's features: those that every arm of an ablation has.
    """
    if path.exists():
        return
    count = min(PICTURES, len(images))
    # Not evenly spaced: with a period of the classes they would all be of one.
    pictures = [images.picture(int((i + 1) * GOLDEN % 1 * len(images))) for i in range(count)]
    found = [
        correspondences(model, views_of(picture, model.image_size, seed), features="backbone")
        for seed, picture in enumerate(pictures)
    ]
    columns = {name: np.stack([getattr(each, name) for each in found]) for name in _COLUMNS}
    for name in Views._fields:
        columns[name] = np.stack([getattr(each.views, name) for each in found])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, grid=np.array(found[0].grid), **columns)


def read_matches(path: Path) -> list[Correspondences]:
    """What `keep_matches` has written. Errors: `UserError` if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as held:
            columns = {name: held[name] for name in held.files}
        rows, across = columns["grid"].tolist()
        return [
            Correspondences(
                Views(*(columns[name][i] for name in Views._fields)), (rows, across),
                *(columns[name][i] for name in _COLUMNS),
            )
            for i in range(len(columns["partner"]))
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as matches: {error}") from None
