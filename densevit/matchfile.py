"""The file of the correspondences that a run keeps of some val pictures, and what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from densevit.errors import UserError
from densevit.rundir import replacing

_COLUMNS = ("partner", "similarity", "truth", "right")


class Views(NamedTuple):
    """Two crops of a picture as one looks at them.

    pixels: (2, S, S, 3) uint8, not normalised: each network has its own mean and std.
    places: (2, 4) float32, what each shows of the picture (see `data.views.Crop.place`).
    """

    pixels: NDArray[np.uint8]
    places: NDArray[np.float32]


@dataclass(frozen=True)
class Correspondences:
    """Each of the N patches of view 1, row by row, and its match in view 2.

    views: the pictures. grid: rows and columns of patches; N is their product.
    partner: (N,) int64, the patch of view 2 that is most similar.
    similarity: (N,) float32, the cosine of the two.
    truth: (N,) int64, the patch of view 2 that covers the same place; -1 where it shows no such.
    right: (N,) bool, whether the partner is the true one or one of the up to eight around it;
        False where there is none. The rule of `contrast.matching.match_quality`.
    """

    views: Views
    grid: tuple[int, int]
    partner: NDArray[np.int64]
    similarity: NDArray[np.float32]
    truth: NDArray[np.int64]
    right: NDArray[np.bool_]

    @property
    def precision(self) -> float:
        """Share of right matches among the patches that have a true one; NaN where none has."""
        exist = int((self.truth >= 0).sum())
        return int(self.right.sum()) / exist if exist else float("nan")


def write_matches(path: Path, found: Sequence[Correspondences]) -> None:
    """Write those of one or more pictures, of one network."""
    columns = {name: np.stack([getattr(each, name) for each in found]) for name in _COLUMNS}
    for name in Views._fields:
        columns[name] = np.stack([getattr(each.views, name) for each in found])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, grid=np.array(found[0].grid), **columns)


def read_matches(path: Path) -> list[Correspondences]:
    """What `write_matches` has written. Errors: `UserError` if the file is missing or damaged."""
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
