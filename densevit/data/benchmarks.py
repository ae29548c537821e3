"""Test sets, and which of a network's outputs each asks about.

A folder of ImageNet-A has 200 class folders, and one of ImageNet-V2 calls them 0 to 999: their
places in a sorted listing are not the network's outputs. Here each known benchmark says what its
folders must be called; anything else is refused, never guessed. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densevit.data import imagenet
from densevit.data.archives import is_hugging_face, is_tar, open_hugging_face, open_tar
from densevit.data.flat import is_flat, open_flat
from densevit.data.folders import FolderImages, scan, some
from densevit.data.layouts import LAYOUTS, difference, expected_classes, misnamed
from densevit.data.pictures import Images, Picture
from densevit.errors import UserError

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TestSet:
    """Labelled pictures as a network is asked about them.

    `labels` index `classes`, the benchmark's own. `groups` holds, for each of these, the network's
    outputs that mean it; None when they are the network's, one for one. `among` are further sets of
    classes in which an answer is wanted, by name. `layout` is that of `LAYOUTS`, "" for another.
    """

    name: str
    images: Images
    classes: tuple[str, ...]
    relabelled: Sequence[int] | None = None
    groups: Groups | None = None
    among: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layout: str = ""

    __test__ = False  # pytest collects classes by this name

    @property
    def labels(self) -> Sequence[int]:
        """Those of the pictures where they are not `relabelled`; a drawn set is drawn for them."""
        return self.images.labels if self.relabelled is None else self.relabelled

    @property
    def ids(self) -> Sequence[str]:
        return self.images.ids

    def __len__(self) -> int:
        return len(self.images)

    def picture(self, index: int) -> Picture:
        return self.images.picture(index)

    def fingerprint(self) -> dict[str, object]:
        return self.images.fingerprint()


def plain_set(name: str, images: Images) -> TestSet:
    """A test set whose classes are the network's, in their order: a run's own val.

    Of ImageNet's 1000 an answer is also wanted among the 200 of -A and of -R: the clean accuracy on
    the same classes.
    """
    among = {}
    if images.classes == imagenet.wnids():
        place = {wnid: index for index, wnid in enumerate(imagenet.wnids())}
        for benchmark, which in (("imagenet-a", "imagenet_a"), ("imagenet-r", "imagenet_r")):
            among[benchmark] = tuple(place[wnid] for wnid in imagenet.wnids(which))
    known = "imagenet" if among else ""
    return TestSet(name, images, tuple(images.classes), among=among, layout=known)


def open_benchmark(
    name: str, given: str | Mapping[str, Any] | None, outputs: tuple[str, ...], source: str
) -> TestSet:
    """A benchmark of a run's configuration, for a network with these `outputs` (class names).

    `given` is its path, or a mapping of `path` and `classes`: `folder` (the class folders are the
    outputs), `imagenet` (they are WordNet ids, of all or some classes), or a file (see
    `_class_file`). Without a path it lies in $DENSEVIT_DATA/NAME. Errors: `UserError` beginning
    with `source`.
    """
    record = {"path": given} if isinstance(given, str) or given is None else dict(given)
    path = _place(name, record.get("path"), source)
    scheme = record.get("classes")
    if scheme is None and name == "imagenet-real":
        raise UserError(
            f"{source}: the reassessed labels come with imagenet: its results have real_top1"
        )
    if scheme is None and name in LAYOUTS:
        return _known(name, path, outputs, source)
    if scheme in (None, "folder"):
        images = open_images(path, source)
        check_classes(images, outputs, source)
        if tuple(images.classes) == outputs:
            return plain_set(name, images)
        # The same classes in another order, as a network of `shapes` has them.
        place = {output: index for index, output in enumerate(outputs)}
        named = [place[images.classes[label]] for label in images.labels]
        return TestSet(name, images, outputs, named)
    images = open_images(path, source)
    if scheme == "imagenet":
        _check_known(images.classes, imagenet.wnids(), "WordNet ids of ImageNet", path, source)
        return _asked(name, images, images.classes, outputs, source, path)
    meaning = _class_file(Path(scheme), source)
    missing = sorted(set(images.classes) - meaning.keys())
    if missing:
        raise UserError(f"{source}: classes: {scheme}: has no line for {some(missing)} of {path}")
    named = [meaning[folder] for folder in images.classes]
    classes = tuple(sorted(set(named)))
    place = {each: index for index, each in enumerate(classes)}
    labels = [place[named[label]] for label in images.labels]
    return _asked(name, images, classes, outputs, source, path, labels)


def open_images(path: Path, source: str) -> Images:
    """Pictures in class folders, in tar files, in a Hugging Face data set, or, of ImageNet's
    validation set, in one flat folder beside its ground truth."""
    if is_tar(path):
        return open_tar(path, source)
    if is_hugging_face(path):
        return open_hugging_face(path, "val", source)
    if is_flat(path):
        return open_flat(path, source)
    if path.is_file():
        raise UserError(f"{source}: {path}: is a file and no folder and no .tar")
    return scan(path, source)


def check_classes(images: Images, wanted: Sequence[str], source: str) -> None:
    """Refuse a folder whose classes are not those of the training images, by name."""
    told = difference(images.classes, wanted)
    if told:
        where = getattr(images, "root", "")
        raise UserError(f"{source}: {where}: its classes are not those of train/: {told}")


def _known(name: str, path: Path, outputs: tuple[str, ...], source: str) -> TestSet:
    layout = LAYOUTS[name]
    wanted = expected_classes(layout)
    if layout.folders == "corruption":
        images: Images = _scan_corruptions(path, wanted, source)
    else:
        images = open_images(path, source)
    for told in misnamed(name, images.classes):
        raise UserError(f"{source}: {path}: {told}")
    labels = images.labels
    if images.classes != wanted:  # numbers, in the order of words
        numbers = [int(folder) for folder in images.classes]
        labels = [numbers[label] for label in images.labels]
    if name == "imagenet" and outputs == wanted:
        return plain_set(name, images)
    if layout.folders == "category":
        wrong = [sample for sample in images.ids if imagenet.texture(sample) not in wanted]
        if wrong:
            raise UserError(
                f"{source}: {path}: a picture's name must say its texture, as in "
                f"{layout.example}: found {some(wrong)}"
            )
    if layout.folders == "category" and set(outputs) != set(wanted):
        members = imagenet.category_members()
        groups = _groups([members[c] for c in wanted], outputs, name, source)
        return TestSet(name, images, wanted, labels, groups, layout=name)
    return _asked(name, images, wanted, outputs, source, path, labels, name)


def _asked(
    name: str, images: Images, classes: tuple[str, ...], outputs: tuple[str, ...], source: str,
    path: Path, labels: Sequence[int] | None = None, layout: str = "",
) -> TestSet:  # fmt: skip
    """A set of some of the network's classes, each of which is one output."""
    groups = None
    if classes != outputs:
        groups = _groups([(each,) for each in classes], outputs, f"{name} ({path})", source)
    return TestSet(name, images, tuple(classes), labels, groups, layout=layout)


def _groups(
    members: Sequence[Sequence[str]], outputs: tuple[str, ...], name: str, source: str
) -> Groups:
    place = {output: index for index, output in enumerate(outputs)}
    wanted = [each for group in members for each in group]
    missing = [each for each in wanted if each not in place]
    if missing:
        raise UserError(
            f"{source}: {name} asks for {len(wanted)} classes, of which the network, with "
            f"{len(outputs)}, does not know {some(missing)}"
        )
    return tuple(tuple(place[each] for each in group) for group in members)


def _scan_corruptions(root: Path, wanted: tuple[str, ...], source: str) -> FolderImages:
    """CORRUPTION/SEVERITY/WNID/picture, of some or all corruptions; also one folder deeper, as
    the archives `noise`, `blur`, `weather`, `digital` and `extra` may be unpacked."""
    if not root.is_dir():
        told = "is a file and no folder" if root.exists() else "no such folder"
        raise UserError(f"{source}: {root}: {told}")
    found = {}
    for folder in sorted([*root.glob("*"), *root.glob("*/*")]):
        if folder.name in imagenet.CORRUPTIONS and folder.is_dir():
            found.setdefault(folder.name, folder)
    if not found:
        raise UserError(
            f"{source}: {root}: holds no folder of a corruption (wanted "
            f"CORRUPTION/SEVERITY/WNID/picture, as {LAYOUTS['imagenet-c'].example})"
        )
    ids: list[str] = []
    labels: list[int] = []
    for corruption in [c for c in imagenet.CORRUPTIONS if c in found]:
        for severity in "12345":
            folder = found[corruption] / severity
            images = scan(folder, source)
            told = difference(images.classes, wanted)
            if told:
                raise UserError(f"{source}: {folder}: {told}")
            inside = folder.relative_to(root)
            ids += [f"{inside}/{each}" for each in images.ids]
            labels += images.labels
    return FolderImages(root, wanted, tuple(ids), tuple(labels))


def _check_known(
    found: Sequence[str], known: Sequence[str], what: str, path: Path, source: str
) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise UserError(f"{source}: {path}: its class folders must be {what}: {some(unknown)}")


def _class_file(path: Path, source: str) -> dict[str, str]:
    """Lines of `FOLDER CLASS`: which of the network's classes a class folder shows. Several
    folders may show one; `#` begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"{source}: classes: {path}: {why} (wanted folder, imagenet, or a file of lines "
            f"FOLDER CLASS)"
        ) from None
    meaning: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] in meaning:
            wrong = f"{words[0]} twice" if len(words) == 2 else f"{line.strip()!r}"
            raise UserError(f"{source}: classes: {path}:{number}: {wrong} (wanted: FOLDER CLASS)")
        meaning[words[0]] = words[1]
    return meaning


def _place(name: str, given: str | None, source: str) -> Path:
    if given:
        return resolved(given, source)
    root = os.environ.get("DENSEVIT_DATA")
    if not root:
        raise UserError(
            f"{source}: where it lies is not said; give its path, or set $DENSEVIT_DATA to a "
            f"folder that holds {name}/"
        )
    return Path(root).expanduser().absolute() / name


def resolved(path: str, source: str) -> Path:
    """An absolute path, with variables and `~` replaced. Errors: `UserError` for an unset one."""
    expanded = Path(os.path.expandvars(path)).expanduser()
    if "$" in str(expanded):
        raise UserError(f"{source}: {path}: the variable is not set")
    return expanded.absolute()
