"""Open test sets and map their classes to a network's outputs.

ImageNet-A has 200 class folders, and ImageNet-V2 names them 0 to 999: their positions in a sorted
listing are not the network's outputs. Each known benchmark therefore defines its folder names;
other names are rejected, never guessed. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from densevit.data import imagenet
from densevit.data.archives import StoredImages, open_tar, select
from densevit.data.class_names import check_several, read_class_file
from densevit.data.hugging_face import is_hugging_face, open_hugging_face
from densevit.data.image import Labels
from densevit.data.image_files import Skipped, some, visible
from densevit.data.image_folder import FolderImages, scan
from densevit.data.imagenet_val import is_flat, open_flat
from densevit.data.known_benchmarks import LAYOUTS, difference, expected_classes, misnamed
from densevit.data.tar_files import is_tar
from densevit.data.test_set import Groups, TestSet, plain_set
from densevit.utils.errors import UserError


def open_benchmark(
    name: str, given: str | Mapping[str, Any] | None, outputs: tuple[str, ...], source: str
) -> TestSet:
    """Open a benchmark of a run's configuration, for a network with these `outputs` (class names).

    `given` is its path, or a mapping of `path`, `classes` and `label_column` (of a Hugging Face
    data set). `classes` is `folder` (the class folders are outputs), `imagenet` (WordNet ids of all
    or some classes), or a file (see `read_class_file`). Without a path it is $DENSEVIT_DATA/NAME.
    Errors: `UserError` beginning with `source`.
    """
    record = {"path": given} if isinstance(given, str) or given is None else dict(given)
    path = _place(name, record.get("path"), source)
    scheme, column = record.get("classes"), record.get("label_column")
    if scheme is None and name == "imagenet-real":
        raise UserError(
            f"{source}: not a benchmark of its own; the results of imagenet include real_top1"
        )
    if scheme is None and name in LAYOUTS:
        return _known(name, path, outputs, source, column)
    images = open_images(path, source, column)
    if scheme in (None, "folder"):
        return by_output(name, images, outputs, source)
    if scheme == "imagenet":
        _check_known(images.classes, imagenet.wnids(), "WordNet ids of ImageNet", path, source)
        return _test_set(name, images, images.classes, outputs, source)
    meaning = read_class_file(Path(scheme), source)
    missing = sorted(set(images.classes) - meaning.keys())
    if missing:
        raise UserError(f"{source}: classes: {scheme}: has no line for {some(missing)} of {path}")
    class_of = [meaning[folder] for folder in images.classes]
    classes = tuple(sorted(set(class_of)))
    place = {each: index for index, each in enumerate(classes)}
    labels = [place[class_of[label]] for label in images.labels]
    return _test_set(name, images, classes, outputs, source, labels)


def open_images(path: Path, source: str, label_column: str | None = None) -> StoredImages:
    """Open class folders, tars, a Hugging Face data set, or ImageNet's flat validation folder."""
    if is_tar(path):
        images: StoredImages = open_tar(path, source)
    elif is_hugging_face(path):
        return open_hugging_face(path, "test", source, label_column)
    elif is_flat(path):
        images = open_flat(path, source)
    elif path.is_file():
        raise UserError(f"{source}: {path}: is a file, neither a folder nor a .tar")
    else:
        images = scan(path, source)
    if label_column is not None:
        raise UserError(
            f"{source}: {path}: label_column: {label_column}: is for Hugging Face data sets; here "
            f"the class folders are the labels"
        )
    return images


def by_output(name: str, images: StoredImages, outputs: tuple[str, ...], source: str) -> TestSet:
    """Return a test set whose class names are outputs of the network: a run's own val, too.

    Some outputs may have no images. Errors: `UserError` for other class names.
    """
    if images.classes == outputs:
        return plain_set(name, images)
    extra = set(images.classes) - set(outputs)
    if extra:
        fault = difference(images.classes, outputs)
        raise UserError(f"{source}: {images.root}: its classes are not those of train/: {fault}")
    place = {output: index for index, output in enumerate(outputs)}
    labels = [place[images.classes[label]] for label in images.labels]
    return TestSet(name, images, outputs, labels)


def _known(
    name: str, path: Path, outputs: tuple[str, ...], source: str, column: str | None
) -> TestSet:
    layout = LAYOUTS[name]
    classes = expected_classes(layout)
    if layout.folders == "corruption":
        images: StoredImages = _scan_corruptions(path, classes, source)
    else:
        images = open_images(path, source, column)
    for fault in misnamed(name, images.classes):
        raise UserError(f"{source}: {path}: {fault}")
    labels = images.labels
    if images.classes != classes:  # numbers, sorted as text
        numbers = [int(folder) for folder in images.classes]
        labels = tuple(numbers[label] for label in images.labels)
    if name == "imagenet" and outputs == classes:
        return plain_set(name, images)
    if layout.folders == "category":
        wrong = [sample for sample in images.ids if imagenet.texture(sample) not in classes]
        if wrong:
            raise UserError(
                f"{source}: {path}: an image's name must contain its texture, as in "
                f"{layout.example}: found {some(wrong)}"
            )
    if layout.folders == "category" and set(outputs) != set(classes):
        members = imagenet.category_members()
        groups = _groups([members[c] for c in classes], outputs, name, source)
        return TestSet(name, images, classes, labels, groups, layout=name)
    if set(outputs) <= set(imagenet.wnids()) and not set(classes) <= set(outputs):
        return _shared(name, images, classes, labels, outputs, source)
    return _test_set(name, images, classes, outputs, source, labels, name)


def _shared(
    name: str, images: StoredImages, classes: tuple[str, ...], labels: Sequence[int],
    outputs: tuple[str, ...], source: str,
) -> TestSet:  # fmt: skip
    """Return those images of a known benchmark whose classes the network has; the other classes are
    no possible predictions."""
    shared = tuple(each for each in outputs if each in classes)
    place = {each: index for index, each in enumerate(shared)}
    rows = [row for row, label in enumerate(labels) if classes[label] in place]
    own = [place[classes[labels[row]]] for row in rows]
    # mCE and the reassessed labels are defined for all 1000 classes.
    layout = "" if name in ("imagenet", "imagenet-c") else name
    test_set = _test_set(name, select(images, rows), shared, outputs, source, own, layout)
    return replace(test_set, shared_of=len(classes))


def _test_set(
    name: str, images: StoredImages, classes: tuple[str, ...], outputs: tuple[str, ...],
    source: str, labels: Labels | None = None, layout: str = "",
) -> TestSet:  # fmt: skip
    """Return a test set each of whose classes is one of the network's outputs.

    Errors: `UserError` if an output is missing, or there are less than two classes.
    """
    groups = None
    if classes != outputs:
        named = [(each,) for each in classes]
        groups = _groups(named, outputs, f"{name} ({images.root})", source)
    if classes:
        check_several(images, classes, source)
    else:
        raise UserError(f"{source}: {images.root}: the network has none of its classes")
    return TestSet(name, images, tuple(classes), labels, groups, layout=layout)


def _groups(
    members: Sequence[Sequence[str]], outputs: tuple[str, ...], name: str, source: str
) -> Groups:
    place = {output: index for index, output in enumerate(outputs)}
    needed = [each for group in members for each in group]
    missing = [each for each in needed if each not in place]
    if missing:
        raise UserError(
            f"{source}: {name} has {len(needed)} classes; the network, with {len(outputs)}, does "
            f"not know {some(missing)}"
        )
    return tuple(tuple(place[each] for each in group) for group in members)


def corruption_folders(root: Path) -> list[Path]:
    """Return the folders of ImageNet-C's corruptions, in its order; they may also lie one folder
    deeper, in the unpacked archives `noise`, `blur`, `weather`, `digital` and `extra`."""
    found: dict[str, Path] = {}
    for folder in sorted([*visible(root), *(e for each in visible(root) for e in visible(each))]):
        if folder.is_dir():
            found.setdefault(folder.name, folder)
    return [found[name] for name in imagenet.CORRUPTIONS if name in found]


def _scan_corruptions(root: Path, classes: tuple[str, ...], source: str) -> FolderImages:
    """List CORRUPTION/SEVERITY/WNID/image of some or all corruptions."""
    if not root.is_dir():
        fault = "is a file, not a folder" if root.exists() else "no such folder"
        raise UserError(f"{source}: {root}: {fault}")
    found = corruption_folders(root)
    if not found:
        raise UserError(
            f"{source}: {root}: holds no folder of a corruption (expected "
            f"CORRUPTION/SEVERITY/WNID/image, as {LAYOUTS['imagenet-c'].example})"
        )
    ids: list[str] = []
    labels: list[int] = []
    skipped: list[Skipped] = []
    for corruption in found:
        for severity in "12345":
            folder = corruption / severity
            images = scan(folder, source)
            fault = difference(images.classes, classes)
            if fault:
                raise UserError(f"{source}: {folder}: {fault}")
            inside = folder.relative_to(root)
            ids += [f"{inside}/{each}" for each in images.ids]
            labels += images.labels
            skipped += [each._replace(path=f"{inside}/{each.path}") for each in images.skipped]
    return FolderImages(root, classes, tuple(ids), tuple(labels), tuple(skipped))


def _check_known(
    found: Sequence[str], known: Sequence[str], what: str, path: Path, source: str
) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise UserError(f"{source}: {path}: its class folders must be {what}: {some(unknown)}")


def _place(name: str, given: str | None, source: str) -> Path:
    if given:
        return resolved(given, source)
    root = os.environ.get("DENSEVIT_DATA")
    if not root:
        raise UserError(
            f"{source}: has no path; give its path, or set $DENSEVIT_DATA to a folder that holds "
            f"{name}/"
        )
    return Path(root).expanduser().absolute() / name


def resolved(path: str, source: str) -> Path:
    """Return an absolute path, `~` and variables expanded. Errors: `UserError` if one is unset."""
    expanded = Path(os.path.expandvars(path)).expanduser()
    if "$" in str(expanded):
        raise UserError(f"{source}: {path}: the variable is not set")
    return expanded.absolute()
