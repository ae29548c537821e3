"""Correspondences that a run stores for some val images, and their file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from densevit.utils.errors import UserError
from densevit.utils.files import replacing

_COLUMNS = ("partner", "similarity", "truth", "right")


class Views(NamedTuple):
    """Two crops of an image.

    pixels: (2, S, S, 3) uint8, not normalized: each network has its own mean and std.
    places: (2, 4) float32, the box of each in the image (see `data.crops.Crop.place`).
    """

    pixels: NDArray[np.uint8]
    places: NDArray[np.float32]


@dataclass(frozen=True)
class Correspondences:
    """Matches in view 2 of the N patches of view 1, row by row.

    views: the two crops. grid: rows and columns of patches; N is their product.
    partner: (N,) int64, the most similar patch of view 2.
    similarity: (N,) float32, the cosine of the two.
    truth: (N,) int64, the patch of view 2 that covers the same place; -1 if there is none.
    right: (N,) bool, True if the partner is the true match or one of the up to eight patches around
        it; False if there is no true match. Same rule as `contrast.matching.match_quality`.
    """

    views: Views
    grid: tuple[int, int]
    partner: NDArray[np.int64]
    similarity: NDArray[np.float32]
    truth: NDArray[np.int64]
    right: NDArray[np.bool_]

    @property
    def precision(self) -> float:
        """Return the share of right matches among patches with a true match; NaN if none has."""
        exist = int((self.truth >= 0).sum())
        return int(self.right.sum()) / exist if exist else float("nan")


def write_matches(path: Path, found: Sequence[Correspondences]) -> None:
    """Write the correspondences of one or more images, of one network."""
    columns = {name: np.stack([getattr(each, name) for each in found]) for name in _COLUMNS}
    for name in Views._fields:
        columns[name] = np.stack([getattr(each.views, name) for each in found])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, grid=np.array(found[0].grid), **columns)


def read_matches(path: Path) -> list[Correspondences]:
    """Read a file of `write_matches`. Errors: `UserError` if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
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
