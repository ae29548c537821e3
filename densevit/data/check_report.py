"""Compare the classes of data sets and describe the findings of `densevit data check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from densevit.data.check_folders import Findings, Listing


def compare(several: Sequence[Findings]) -> tuple[list[str], list[str]]:
    """Return the problems and notes that appear when sets are compared.

    Problems: class folders of val that differ from train's, and images of train in another set, by
    their hashes where present. Notes: images that two test sets share.
    """
    from densevit.data.image_files import some
    from densevit.data.known_benchmarks import difference

    problems: list[str] = []
    notes: list[str] = []
    sets = {each.listing.name: each for each in several}
    if "train" in sets and "val" in sets:
        of_val, of_train = (sets[name].listing.images.classes for name in ("val", "train"))
        fault = difference(of_val, of_train)
        if set(of_val) - set(of_train):
            problems.append(f"val: its class folders are not those of train: {fault}")
        elif fault:
            notes.append(f"val: {fault}: a run is scored on the images of the other classes")
    for names in combinations(sets, 2):
        one, other = (sets[name] for name in names)
        first = dict(one.reading.contents(one.listing.images.ids))
        shared = [
            f"{first[digest]} = {each}"
            for digest, each in other.reading.contents(other.listing.images.ids)
            if digest in first
        ]
        if shared:
            line = f"{names[0]} and {names[1]} share {len(shared):,} images: {some(shared)}"
            (problems if "train" in names else notes).append(line)
    return problems, notes


def index_map(listing: Listing) -> list[str]:
    """Describe which network outputs the first and the last class folder correspond to."""
    from densevit.data import imagenet
    from densevit.data.known_benchmarks import LAYOUTS

    layout, classes = LAYOUTS.get(listing.name), list(listing.images.classes)
    wnids = imagenet.wnids()
    if layout and all(each.isdigit() for each in classes):
        classes.sort(key=int)
    lines = []
    for place in dict.fromkeys((0, len(classes) - 1)):
        folder = classes[place]
        members = imagenet.category_members().get(folder, ()) if layout else ()
        if layout and not members:
            members = (folder if folder in wnids else wnids[int(folder)],)
        places = " ".join(str(wnids.index(each)) for each in members) or str(place)
        named = f" ({members[0]})" if members and folder.isdigit() else ""
        lines.append(f"{folder} is {places}{' of ImageNet' if layout else ''}{named}")
    return lines


def class_balance(listing: Listing) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return the smallest and the largest class, each with its number of images."""
    counts = Counter(listing.images.labels)
    pairs = [(name, counts[label]) for label, name in enumerate(listing.images.classes)]
    pairs.sort(key=lambda pair: (pair[1], pair[0]))
    return (pairs[0], pairs[-1]) if pairs else (("", 0), ("", 0))
