"""Whether the files of a data set are whole and lie as a run wants them.

`listed` looks at folders, `examine` also at what `densevit.data.reading` tells of the files: what
is wrong is a problem, what is worth knowing a note. `known_problems` and `quick_problems` are for a
run before it starts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from densevit.data import imagenet
from densevit.data.archives import is_hugging_face, is_tar, open_hugging_face, open_tar
from densevit.data.benchmarks import TestSet
from densevit.data.flat import is_flat, open_flat
from densevit.data.folders import SUFFIXES, FolderImages, some
from densevit.data.layouts import LAYOUTS, expected_classes, misnamed
from densevit.data.pictures import Images
from densevit.data.reading import Reading, kept, read_files
from densevit.errors import UserError

QUICK = 60_000  # pictures that a run reads before it starts, at most
# Of ImageNet's own pictures, by the name that a set of its 1000 classes is given (ILSVRC 2012).
_PUBLISHED = {"train": 1_281_167, "val": 50_000}


class Listing(NamedTuple):
    """What lies in a place: pictures, class folders without any (`empty`), other files (`foreign`,
    which a run leaves out), and what is wrong with its layout."""

    name: str
    images: Images
    empty: Sequence[str] = ()
    foreign: Sequence[str] = ()
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Findings:
    """A checked set; `expected` pictures were published (None: nobody says)."""

    listing: Listing
    reading: Reading
    expected: int | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def listed(name: str, path: Path) -> Listing:
    """What lies at the path of a set: class folders (of a benchmark in `LAYOUTS`: as its archive
    has them), tar files, a Hugging Face data set, or ImageNet's flat validation folder.

    Errors: `UserError` if nothing is there, or a file that is none of these.
    """
    layout = LAYOUTS.get(name)
    wanted = f"{layout.example}, from {layout.source}" if layout else "CLASS/picture.jpg"
    if not path.exists():
        raise UserError(f"{name}: {path}: no such folder or file (wanted {wanted})")
    corrupted = layout is not None and layout.folders == "corruption"
    if not path.is_dir() and (corrupted or not is_tar(path)):
        no = "" if corrupted else " and no .tar"
        raise UserError(f"{name}: {path}: is a file and no folder{no} (wanted {wanted})")
    if corrupted:
        return _corruptions(name, path)
    try:
        if is_tar(path):
            images: Images = open_tar(path, name)
        elif is_hugging_face(path):
            images = open_hugging_face(path, "train" if name == "train" else "val", name)
        elif is_flat(path):
            images = open_flat(path, name)
        else:
            return _walk(name, path, "")
    except UserError as error:
        told = str(error).removeprefix(f"{name}: ")
        return Listing(name, FolderImages(path, (), (), ()), problems=[told])
    held = set(images.labels)
    empty = [each for label, each in enumerate(images.classes) if label not in held]
    return Listing(name, images, empty, problems=misnamed(name, images.classes))


def examine(
    listing: Listing, hashing: bool = True, jobs: int | None = None, cache: Path | None = None
) -> Findings:
    """Read every file of a set, unless the cache knows it, and say what is wrong with the set.

    The options are those of `reading.read_files`.
    """
    images, layout = listing.images, LAYOUTS.get(listing.name)
    read = read_files(images, hashing, jobs, cache)
    expected = layout.images if layout else None
    if not layout and images.classes == imagenet.wnids():
        expected = _PUBLISHED.get(listing.name)
    problems = [*listing.problems]
    if listing.empty:
        problems.append(f"class folders without a picture: {some([*listing.empty])}")
    if read.unreadable:
        told = some([f"{each} ({why})" for each, why in read.unreadable])
        problems.append(f"pictures that cannot be read: {told}")
    return Findings(listing, read, expected, tuple(problems), _notes(listing, read, expected))


def known_problems(images: Images | TestSet, cache: Path | None = None) -> list[str]:
    """A line for each picture that a check found unreadable, if the files are still the same.

    Reads no picture: a stat of each file if there was a check, else nothing.
    """
    images = images.images if isinstance(images, TestSet) else images
    with suppress(RuntimeError):  # no home folder, and so no cache
        return _unreadable(images, kept(images, False, cache))
    return []


def quick_problems(
    images: Images | TestSet, jobs: int | None = None, cache: Path | None = None
) -> list[str]:
    """As `known_problems`; up to `QUICK` pictures that no check knows are checked now, by their
    first and last bytes, and what they told is kept."""
    images = images.images if isinstance(images, TestSet) else images
    if len(images) > QUICK or not hasattr(images, "root"):  # the drawn set has no files
        return known_problems(images, cache)
    return _unreadable(images, read_files(images, False, jobs, cache))


def _corruptions(name: str, root: Path) -> Listing:
    """The folders CORRUPTION/SEVERITY, each listed as a benchmark is."""
    places: dict[str, Path] = {}
    for place in sorted([*root.glob("*"), *root.glob("*/*")]):  # as a run finds them
        if place.is_dir():
            places.setdefault(place.name, place)
    found = [places[each] for each in imagenet.CORRUPTIONS if each in places]
    wanted = f"(wanted {LAYOUTS[name].example}; from {LAYOUTS[name].source})"
    problems = [] if found else [f"holds no folder of a corruption {wanted}"]
    parts = []
    for folder in (each / severity for each in found for severity in "12345"):
        inside = folder.relative_to(root)
        if folder.is_dir():
            parts.append(_walk(name, root, f"{inside}/"))
            problems += [f"{inside}: {told}" for told in parts[-1].problems]
        else:
            problems.append(f"{inside}: no such folder {wanted}")
    ids = tuple(each for part in parts for each in part.images.ids)
    labels = tuple(each for part in parts for each in part.images.labels)
    images = FolderImages(root, expected_classes(LAYOUTS[name]), ids, labels)
    empty = [each for part in parts for each in part.empty]
    foreign = [each for part in parts for each in part.foreign]
    return Listing(name, images, empty, foreign, problems)


def _walk(name: str, root: Path, inside: str) -> Listing:
    """The class folders of `root/inside`, also empty ones, with the pictures that a run finds in
    them (`folders.scan`), and the files that it leaves out; all their paths begin at `root`."""
    with os.scandir(root / inside) as entries:
        seen = sorted((e.name, e.is_dir()) for e in entries if e.name[0] != ".")
    classes = tuple(each for each, is_folder in seen if is_folder)
    foreign = [f"{inside}{each}" for each, is_folder in seen if not is_folder]
    ids: list[str] = []
    labels: list[int] = []
    empty = []
    for label, each in enumerate(classes):
        found: list[str] = []
        for folder, _, names in os.walk(root / inside / each, followlinks=True):
            relative = os.path.relpath(folder, root)
            for file in names:
                if file[0] != ".":
                    picture = os.path.splitext(file)[1].lower() in SUFFIXES  # noqa: PTH122
                    (found if picture else foreign).append(f"{relative}/{file}")
        ids += sorted(found)
        labels += [label] * len(found)
        empty += [] if found else [f"{inside}{each}"]
    images = FolderImages(root, classes, tuple(ids), tuple(labels))
    problems = misnamed(name, classes) or ([] if classes else ["holds no class folders"])
    return Listing(name, images, empty, foreign, problems)


def _notes(listing: Listing, read: Reading, expected: int | None) -> tuple[str, ...]:
    count, notes = len(listing.images), []
    if expected is not None and count != expected:
        word = "incomplete: " if count < expected else ""
        notes.append(f"{word}{count:,} of {expected:,} published pictures")
    if listing.foreign:
        notes.append(f"files that are left out: {some([*listing.foreign])}")
    for kind, several, first in read.kinds:
        notes.append(f"{several:,} pictures {kind}: {first}" + ", ..." * (several > 1))
    if read.odd:
        notes.append(f"whole, but with further bytes at their end: {some([*read.odd])}")
    first_of: dict[bytes, str] = {}
    twins = []
    for digest, name in read.contents(listing.images.ids):
        if digest in first_of:
            twins.append(f"{first_of[digest]} = {name}")
        first_of.setdefault(digest, name)
    return (*notes, *([f"the same content: {some(twins)}"] if twins else []))


def _unreadable(images: Images, read: Reading | None) -> list[str]:
    return [f"{images.root}: {name}: {why}" for name, why in read.unreadable] if read else []
