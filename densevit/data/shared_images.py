"""Find images that two sets share: an accuracy on training images says nothing about others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from densevit.data.archives import StoredImages
from densevit.data.check_files import Reading
from densevit.data.image import Images
from densevit.data.image_files import some
from densevit.utils.errors import UserError

log = logging.getLogger("densevit")

COMPARED = 200  # pairs of images whose contents are compared, at most
TOLERATED = 0.01  # of the test images: published data sets have single duplicates


class Shared(NamedTuple):
    """The `share` of a set's images that another one holds, and pairs of their ids."""

    share: float
    pairs: Sequence[str]


def find_shared(
    train: Images, test: Images, of_train: Reading | None = None, of_test: Reading | None = None
) -> Shared:
    """Return which images of `test` are also in `train`.

    By the hashes of both sets where known (`check_contents`, `densevit data check`); else pairs of
    the same class and file name, of a table those of the same row, are compared by their contents.
    Of many pairs `COMPARED` are compared, evenly spread, and the share is an estimate.
    """
    if of_train and of_test and of_train.digests and of_test.digests:
        known = dict(reversed([*of_train.contents(train.ids)]))  # of equal ones the first
        named = of_test.contents(test.ids)
        pairs = [f"{known[digest]} = {name}" for digest, name in named if digest in known]
        return Shared(len(pairs) / len(test.ids), pairs)
    if not isinstance(train, StoredImages) or not isinstance(test, StoredImages):
        return Shared(0.0, [])  # drawn images are never the same
    candidates = _candidates(train, test)
    step = max(1, -(-len(candidates) // COMPARED))
    chosen = candidates[::step]
    pairs = [f"{train.ids[a]} = {test.ids[b]}" for a, b in chosen if _same(train, a, test, b)]
    if not pairs:
        return Shared(0.0, [])
    return Shared(len(pairs) / len(chosen) * len(candidates) / len(test), pairs)


def refuse_shared(found: Shared, name: str) -> None:
    """Reject a test set that shares images with the training set; warn if they are very few.

    Errors: `UserError` naming pairs.
    """
    if found.share > TOLERATED:
        raise UserError(
            f"{_line(found, name)}; its scores would be those of training images; give it images "
            f"of its own (densevit data check train=DIR val=DIR lists all pairs)"
        )
    warn_of_shared(found, name)


def warn_of_shared(found: Shared, name: str) -> None:
    """Warn of images that a test set shares with the training set."""
    if found.pairs:
        log.warning("%s", _line(found, name))


def _line(found: Shared, name: str) -> str:
    share = f"{100 * found.share:.1f} %"
    return f"{name}: {share} of its images are also in train: {some(found.pairs)}"


def _candidates(train: StoredImages, test: StoredImages) -> list[tuple[int, int]]:
    """Return the indices of pairs that may be the same image, ordered by `test`."""
    if not _has_names(train) or not _has_names(test):
        return [(index, index) for index in range(min(len(train), len(test)))]
    places = {_key(test, index): index for index in range(len(test))}
    found = {}
    for index in range(len(train)):
        place = places.get(_key(train, index))
        if place is not None:
            found[place] = index
    return [(found[place], place) for place in sorted(found)]


def _has_names(images: StoredImages) -> bool:
    return "/" in images.ids[0] if images.ids else False


def _key(images: StoredImages, index: int) -> tuple[str, str]:
    return images.classes[images.labels[index]], images.ids[index].rpartition("/")[2]


def _same(train: StoredImages, a: int, test: StoredImages, b: int) -> bool:
    try:
        return train.content(a) == test.content(b)
    except (OSError, ValueError):  # it is reported where it is read as an image
        return False
