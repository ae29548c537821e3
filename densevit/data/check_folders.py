"""Check that a data set's folders have the layout that a run expects and its files are intact.

`listed` reads the folders; `examine` also reads the files (`densevit.data.check_files`). A fault is
a problem; other observations are notes. A run calls `affordable_reading` before it starts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from densevit.data import imagenet
from densevit.data.archives import ArchivedImages, StoredImages, open_tar
from densevit.data.check_files import Reading, cached_reading, read_files
from densevit.data.class_names import one_class_hint
from densevit.data.hugging_face import Split, is_hugging_face, open_hugging_face
from densevit.data.image import Images, root_of
from densevit.data.image_files import (
    Skipped,
    check_names,
    list_class_folders,
    skipped_lines,
    some,
)
from densevit.data.image_folder import FolderImages
from densevit.data.imagenet_val import is_flat, open_flat
from densevit.data.known_benchmarks import LAYOUTS, expected_classes, misnamed
from densevit.data.open_benchmark import corruption_folders
from densevit.data.tar_files import is_tar
from densevit.data.unlabelled import open_unlabelled
from densevit.utils.errors import UserError

MOST_IMAGES = 60_000  # of a set that a run reads before it starts
_SIZED = 100  # files whose sizes are looked up to estimate that of a set
# Images in ImageNet (ILSVRC 2012), by the name of a set that has its 1000 classes.
_PUBLISHED = {"train": 1_281_167, "val": 50_000}


class Listing(NamedTuple):
    """The images, `empty` class folders, skipped files and problems of a data set."""

    name: str
    images: Images
    empty: Sequence[str] = ()
    skipped: Sequence[Skipped] = ()
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Findings:
    """A checked set; `expected` is the published number of images, or None if unknown."""

    listing: Listing
    reading: Reading
    expected: int | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def listed(
    name: str, path: Path, label_column: str | None = None, *, unlabelled: bool = False
) -> Listing:
    """List class folders, tar files, a Hugging Face data set, or ImageNet's flat validation folder.

    The class folders of a benchmark in `LAYOUTS` are expected as its archive has them. Errors:
    `UserError` if nothing exists there, or a file of another kind.
    """
    if unlabelled:
        images: StoredImages = open_unlabelled(path, name)
        return Listing(name, images, (), images.skipped)
    layout = LAYOUTS.get(name)
    expected = f"{layout.example}, from {layout.source}" if layout else "CLASS/image.jpg"
    if not path.exists():
        raise UserError(f"{name}: {path}: no such folder or file (expected {expected})")
    corrupted = layout is not None and layout.folders == "corruption"
    if not path.is_dir() and (corrupted or not is_tar(path)):
        kind = "not a folder" if corrupted else "neither a folder nor a .tar"
        raise UserError(f"{name}: {path}: is a file, {kind} (expected {expected})")
    if corrupted:
        return _corruptions(name, path)
    try:
        if is_tar(path):
            images = open_tar(path, name)
        elif is_hugging_face(path):
            split: Split = "train" if name == "train" else "val" if name == "val" else "test"
            images = open_hugging_face(path, split, name, label_column)
        elif is_flat(path):
            images = open_flat(path, name)
        else:
            return _walk(name, path, "")
    except UserError as error:
        problem = str(error).removeprefix(f"{name}: ")
        return Listing(name, FolderImages(path, (), (), ()), problems=[problem])
    labels = set(images.labels)
    empty = [each for label, each in enumerate(images.classes) if label not in labels]
    problems = misnamed(name, images.classes) or _too_few_classes(images)
    return Listing(name, images, empty, images.skipped, problems)


def examine(
    listing: Listing, hashing: bool = True, jobs: int | None = None, cache: Path | None = None
) -> Findings:
    """Read every file of a set that is not in the cache, and report problems and notes.

    For the options see `check_files.read_files`.
    """
    images, layout = listing.images, LAYOUTS.get(listing.name)
    read = read_files(images, hashing, jobs, cache)
    expected = layout.images if layout else None
    if not layout and images.classes == imagenet.wnids():
        expected = _PUBLISHED.get(listing.name)
    problems = [*listing.problems]
    if listing.empty:
        problems.append(f"class folders without an image: {some([*listing.empty])}")
    if read.unreadable:
        named = some([f"{each} ({reason})" for each, reason in read.unreadable])
        problems.append(f"unreadable images: {named}")
    return Findings(listing, read, expected, tuple(problems), _notes(listing, read, expected))


def known_reading(images: Images, cache: Path | None = None) -> Reading | None:
    """Return the cached check of a set's files if they are unchanged, else None.

    Reads no image: one stat per file if there was a check, else nothing.
    """
    with suppress(RuntimeError):  # no home folder, therefore no cache
        return cached_reading(images, False, cache)
    return None


def affordable_reading(
    images: Images, most: int, jobs: int | None = None, cache: Path | None = None
) -> Reading | None:
    """Return a reading of a set's files, as far as a run can afford it before it starts.

    A set of about `most` bytes is decoded and hashed as a whole; of the files of a larger one both
    ends are read, and of more than `MOST_IMAGES` only a check that is cached counts. The result is
    cached: unchanged files are read once.
    """
    if root_of(images) is None:  # the built-in set has no files
        return None
    if len(images) > MOST_IMAGES:
        return known_reading(images, cache)
    return read_files(images, _about_bytes(images) <= most, jobs, cache)


def _about_bytes(images: Images) -> int:
    """Return the size of a set's files, estimated from some of them."""
    chosen = range(0, len(images), max(1, len(images) // _SIZED))
    sizes = [_bytes(images, index) for index in chosen]
    return sum(sizes) * len(images) // max(1, len(sizes))


def _bytes(images: Images, index: int) -> int:
    with suppress(OSError, ValueError):  # it is reported where it is read as an image
        if isinstance(images, ArchivedImages):
            return len(images.content(index))
        return os.stat(f"{root_of(images)}/{images.ids[index]}").st_size  # noqa: PTH116, speed
    return 0


def unreadable(images: Images, read: Reading | None) -> list[str]:
    """Return a line per image that a check found unreadable."""
    return [f"{root_of(images)}: {name}: {why}" for name, why in read.unreadable] if read else []


def _corruptions(name: str, root: Path) -> Listing:
    """List the folders CORRUPTION/SEVERITY, each like a benchmark."""
    found = corruption_folders(root)
    expected = f"(expected {LAYOUTS[name].example}; from {LAYOUTS[name].source})"
    problems = [] if found else [f"holds no folder of a corruption {expected}"]
    parts = []
    for folder in (each / severity for each in found for severity in "12345"):
        inside = folder.relative_to(root)
        if folder.is_dir():
            parts.append(_walk(name, root, f"{inside}/"))
            problems += [f"{inside}: {problem}" for problem in parts[-1].problems]
        else:
            problems.append(f"{inside}: no such folder {expected}")
    ids = tuple(each for part in parts for each in part.images.ids)
    labels = tuple(each for part in parts for each in part.images.labels)
    images = FolderImages(root, expected_classes(LAYOUTS[name]), ids, labels)
    empty = [each for part in parts for each in part.empty]
    skipped = [each for part in parts for each in part.skipped]
    return Listing(name, images, empty, skipped, problems)


def _walk(name: str, root: Path, inside: str) -> Listing:
    """List the class folders of `root/inside`, also empty ones; paths are relative to `root`."""
    found = list_class_folders(root, inside)
    images = FolderImages(root, found.classes, found.ids, found.labels, found.skipped)
    problems = misnamed(name, found.classes) or _too_few_classes(images)
    try:
        check_names(found.ids, root, name)
    except UserError as error:
        problems.append(str(error).removeprefix(f"{name}: "))
    return Listing(name, images, found.empty, found.skipped, problems)


def _too_few_classes(images: Images) -> list[str]:
    if not images.classes:
        return ["holds no class folders"]
    if len(images.classes) == 1:
        return [f"has only the class {images.classes[0]}{one_class_hint(images)}"]
    return []


def _notes(listing: Listing, read: Reading, expected: int | None) -> tuple[str, ...]:
    count, notes = len(listing.images), []
    if expected is not None and count != expected:
        state = "incomplete: " if count < expected else ""
        notes.append(f"{state}{count:,} of {expected:,} published images")
    notes += skipped_lines(listing.skipped)
    for kind, several, first in read.kinds:
        notes.append(f"{several:,} images {kind}: {first}" + ", ..." * (several > 1))
    if read.odd:
        notes.append(f"intact, with further bytes at their end: {some([*read.odd])}")
    first_of: dict[bytes, str] = {}
    twins = []
    for digest, name in read.contents(listing.images.ids):
        if digest in first_of:
            twins.append(f"{first_of[digest]} = {name}")
        first_of.setdefault(digest, name)
    return (*notes, *([f"the same content: {some(twins)}"] if twins else []))
