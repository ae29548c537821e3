"""Unpack the published archives of ImageNet's validation images and the benchmarks.

The result is the class folders that a run reads. All archives are scanned before the first file is
written: a member that would leave the folder, or wrong class folders, is an error. An image is
written under a hidden name and renamed, so that an interrupted preparation resumes.
"""

from __future__ import annotations

import fcntl
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from densevit.data import imagenet
from densevit.data.archive_members import open_archive
from densevit.data.image_files import reason_to_skip, some
from densevit.data.imagenet_val import TRUTHS, image_number, labels_of
from densevit.data.known_benchmarks import LAYOUTS, PREPARED, expected_classes, misnamed
from densevit.utils.errors import UserError

_TRUTH_FILES = (*TRUTHS, "meta.mat")


class Prepared(NamedTuple):
    """Image counts, `written` now and `there` before, and the other files that were left out."""

    written: int
    there: int
    left_out: tuple[str, ...]


def prepare(
    name: str, given: Sequence[Path], to: Path, tell: Callable[[str], None] = print
) -> Prepared:
    """Write the images of a benchmark's archives as `to/CLASS/image`.

    For `imagenet`, `given` also holds the label file, unless it is beside the archive: one of
    `imagenet_val.TRUTHS`, or the development kit (a folder or its archive). `tell` gets lines of
    progress. An existing image of the right size is left unchanged.

    Errors: `UserError` before anything is written for an unknown name, a damaged archive, a member
    that is a link or a device or leaves the folder, images outside the benchmark's class folders,
    missing ones, and an existing file of another size.
    """
    if name not in PREPARED:
        raise UserError(f"{name}: has no archives to unpack; these have: {', '.join(PREPARED)}")
    for path in given:
        if not path.exists():
            raise UserError(f"{name}: {path}: no such file; give an archive")
    truths = [path for path in given if name == "imagenet" and _is_truth(path)]
    archives = [path for path in given if path not in truths]
    if not archives:
        raise UserError(f"{name}: no archive of images among {some([str(p) for p in given])}")
    labels = _labels(name, truths, archives[0]) if name == "imagenet" else {}
    targets, left_out = _planned(name, archives, labels)
    there = {target for target, size in targets.items() if _is_there(name, to / target, size)}
    tell(f"{name}: {len(targets):,} images, {len(there):,} of them already in {to}")
    missing = targets.keys() - there
    if missing:
        with _alone(to):
            _write(name, archives, labels, to, missing, tell)
    return Prepared(len(missing), len(there), tuple(left_out))


def _folder_names(name: str) -> tuple[str, ...]:
    classes = expected_classes(LAYOUTS[name])
    if LAYOUTS[name].folders == "number":
        return tuple(str(number) for number in range(len(classes)))
    return classes


def _planned(
    name: str, archives: Sequence[Path], labels: Mapping[int, str]
) -> tuple[dict[str, int], list[str]]:
    """Return each image's target path and size, and the files that are left out."""
    target_of = _targets(name, labels)
    targets: dict[str, int] = {}
    left_out: list[str] = []
    strange: list[str] = []
    for archive in archives:
        with open_archive(name, archive) as members:
            for member in members:
                target = target_of(member.name)
                if not target:
                    (strange if target is None else left_out).append(member.name)
                elif targets.setdefault(target, member.size) != member.size:
                    raise UserError(f"{name}: {archive}: holds {target} twice, of different sizes")
    if strange:
        no = "without a label" if name == "imagenet" else "in no class folder of the benchmark"
        raise UserError(
            f"{name}: {some([str(a) for a in archives])}: images {no}: {some(strange)} "
            f"(expected {LAYOUTS[name].example})"
        )
    _check_folders(name, archives, targets)
    return targets, left_out


def _check_folders(name: str, archives: Sequence[Path], targets: Mapping[str, int]) -> None:
    """Reject archives that lack class folders; for ImageNet-C, per corruption and severity."""
    found: dict[str, set[str]] = {}
    for target in targets:
        *parents, folder, _ = target.split("/")
        found.setdefault("/".join(parents), set()).add(folder)
    if LAYOUTS[name].folders == "corruption":
        corruptions = {parent.partition("/")[0] for parent in found}
        for each in (f"{c}/{s}" for c in corruptions for s in "12345"):
            found.setdefault(each, set())
    for parent, folders in sorted(found.items()) or [("", set())]:
        faults = misnamed(name, sorted(folders))
        if faults:
            where = ", ".join(map(str, archives)) + (f": {parent}" if parent else "")
            raise UserError(f"{name}: {where}: {faults[0]}")


def _targets(name: str, labels: Mapping[int, str]) -> Callable[[str], str | None]:
    """Return a function from a member's path to its target: "" if no image, None if misplaced."""
    classes = frozenset(_folder_names(name))
    corrupted = LAYOUTS[name].folders == "corruption"

    def target_of(path: str) -> str | None:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if reason_to_skip("/".join(parts)):
            return ""
        *above, file = parts
        number = image_number(file)
        if number is not None and number in labels and not classes.intersection(above):
            return f"{labels[number]}/{file}"
        if not above or above[-1] not in classes:
            return None
        if not corrupted:
            return f"{above[-1]}/{file}"
        if len(above) < 3 or above[-3] not in imagenet.CORRUPTIONS or above[-2] not in set("12345"):
            return None
        return "/".join([*above[-3:], file])

    return target_of


def _is_there(name: str, path: Path, size: int) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        raise UserError(
            f"{name}: {path}: exists with {found.st_size:,} bytes, not the archive's {size:,}; "
            f"remove it, or prepare another folder"
        )
    return True


@contextmanager
def _alone(to: Path) -> Iterator[None]:
    """Lock the folder, so that only one preparation writes to it."""
    to.mkdir(parents=True, exist_ok=True)
    with (to / ".prepare.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{to}: another preparation is writing there") from None
        yield


def _write(
    name: str, archives: Sequence[Path], labels: Mapping[int, str], to: Path, missing: set[str],
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    target_of, total, left = _targets(name, labels), len(missing), set(missing)
    root, inside = to.resolve(), set()  # `inside`: folders known to be in `root`
    for archive in archives:
        with open_archive(name, archive) as members:
            for member in members:
                target = target_of(member.name)
                if not target or target not in left:
                    continue
                path = to / target
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.parent not in inside:
                    if not path.parent.resolve().is_relative_to(root):
                        raise UserError(f"{name}: {path.parent}: is a link that leads out of {to}")
                    inside.add(path.parent)
                part = path.with_name(f".{path.name}.part")
                with member.open() as source, part.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                part.rename(path)
                left.discard(target)
                done = total - len(left)
                if done * 5 // total > (done - 1) * 5 // total:
                    tell(f"{name}: {done:,} of {total:,} written")
    if left:
        raise UserError(f"{name}: the archives changed while they were read: {some(sorted(left))}")


# ImageNet's label files.


def _is_truth(path: Path) -> bool:
    return path.is_dir() or path.name in TRUTHS or "devkit" in path.name


def _labels(name: str, truths: Sequence[Path], archive: Path) -> Mapping[int, str]:
    """Return the WordNet id by image number, from given files or those beside the archive."""
    if not truths:
        try:
            return labels_of(archive.absolute().parent, name)
        except UserError as error:
            raise UserError(f"{error}; or give it, or the development kit's archive") from None
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / "truth" / "data"  # `labels_of` also searches the parent folder
        inner.mkdir(parents=True)
        for file, content in (pair for truth in truths for pair in _truth_files(name, truth)):
            (inner / file).write_bytes(content)
        try:
            return labels_of(inner, name)
        except UserError as error:
            message = str(error)
            for truth in truths:
                message = message.replace(str(inner / truth.name), str(truth))
            raise UserError(message.replace(str(inner), ", ".join(map(str, truths)))) from None


def _truth_files(name: str, truth: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files that `labels_of` reads: from a folder, an archive, or beside a label file."""
    if truth.is_dir() or truth.name in TRUTHS:
        places = [truth, truth / "data"] if truth.is_dir() else [truth.parent]
        names = _TRUTH_FILES if truth.is_dir() else (truth.name, "meta.mat")
        for path in (place / each for place in places for each in names):
            if path.is_file():
                yield path.name, path.read_bytes()
        return
    with open_archive(name, truth) as members:
        for member in members:
            file = member.name.rpartition("/")[2]
            if file in _TRUTH_FILES:
                with member.open() as source:
                    yield file, source.read()
