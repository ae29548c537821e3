"""From the archives in which ImageNet's validation pictures and the benchmarks are published to
the class folders that a run reads.

All of an archive is looked through before the first file is written: a member that would leave the
folder, or class folders that are not the benchmark's, stop it. A picture is written under a hidden
name and renamed, so that an interrupted preparation carries on where it stopped.
"""

from __future__ import annotations

import fcntl
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from densevit.data import imagenet
from densevit.data.flat import TRUTHS, labels_of, picture_number
from densevit.data.folders import SUFFIXES, some
from densevit.data.layouts import LAYOUTS, PREPARED, expected_classes, misnamed
from densevit.errors import UserError

_TRUTH_FILES = (*TRUTHS, "meta.mat")


class Prepared(NamedTuple):
    """Counts of pictures, `written` now and `there` before, and other files that were left out."""

    written: int
    there: int
    left_out: tuple[str, ...]


class _Member(NamedTuple):
    """A file of an archive; `open` gives its content, while its archive is being read."""

    name: str
    size: int
    open: Callable[[], Any]


def prepare(
    name: str, given: Sequence[Path], to: Path, tell: Callable[[str], None] = print
) -> Prepared:
    """Write the pictures of a benchmark's archives as `to/CLASS/picture`.

    Of `imagenet`, `given` also holds the ground truth, if it lies elsewhere than beside the
    archive: one of `flat.TRUTHS`, or the development kit (a folder or its archive). `tell` takes a
    line of progress at times. A picture that is there with its size is left as it is.

    Errors: `UserError` before anything is written for an unknown name, a damaged archive, a member
    that is a link or a device or leaves the folder, pictures outside the benchmark's class folders,
    missing ones, and a file of another size where one would be written.
    """
    if name not in PREPARED:
        raise UserError(f"{name}: has no archives to unpack; these have: {', '.join(PREPARED)}")
    for path in given:
        if not path.exists():
            raise UserError(f"{name}: {path}: no such file (wanted an archive)")
    truths = [path for path in given if name == "imagenet" and _is_truth(path)]
    archives = [path for path in given if path not in truths]
    if not archives:
        raise UserError(f"{name}: no archive of pictures among {some([str(p) for p in given])}")
    labels = _labels(name, truths, archives[0]) if name == "imagenet" else {}
    wanted, left_out = _planned(name, archives, labels)
    there = {target for target, size in wanted.items() if _is_there(name, to / target, size)}
    tell(f"{name}: {len(wanted):,} pictures, {len(there):,} of them already in {to}")
    missing = wanted.keys() - there
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
    """Where each picture goes, relative to the folder, with its size; and the files left out."""
    target_of = _targets(name, labels)
    wanted: dict[str, int] = {}
    left_out: list[str] = []
    strange: list[str] = []
    for archive in archives:
        with _opened(name, archive) as members:
            for member in members:
                target = target_of(member.name)
                if not target:
                    (strange if target is None else left_out).append(member.name)
                elif wanted.setdefault(target, member.size) != member.size:
                    raise UserError(f"{name}: {archive}: holds {target} twice, of different sizes")
    if strange:
        no = "without a label" if name == "imagenet" else "in no class folder of the benchmark"
        raise UserError(
            f"{name}: {some([str(a) for a in archives])}: pictures {no}: {some(strange)} "
            f"(wanted {LAYOUTS[name].example})"
        )
    _check_folders(name, archives, wanted)
    return wanted, left_out


def _check_folders(name: str, archives: Sequence[Path], wanted: Mapping[str, int]) -> None:
    """Refuse archives that lack class folders; of ImageNet-C, of a corruption and severity."""
    found: dict[str, set[str]] = {}
    for target in wanted:
        *above, folder, _ = target.split("/")
        found.setdefault("/".join(above), set()).add(folder)
    if LAYOUTS[name].folders == "corruption":
        corruptions = {above.partition("/")[0] for above in found}
        for each in (f"{c}/{s}" for c in corruptions for s in "12345"):
            found.setdefault(each, set())
    for above, folders in sorted(found.items()) or [("", set())]:
        told = misnamed(name, sorted(folders))
        if told:
            where = ", ".join(map(str, archives)) + (f": {above}" if above else "")
            raise UserError(f"{name}: {where}: {told[0]}")


def _targets(name: str, labels: Mapping[int, str]) -> Callable[[str], str | None]:
    """A function from a member's path to its place in the folder: "" for what is no picture, None
    for a picture that has no place."""
    classes = frozenset(_folder_names(name))
    corrupted = LAYOUTS[name].folders == "corruption"

    def target_of(path: str) -> str | None:
        *above, file = [part for part in path.split("/") if part not in ("", ".")] or ["."]
        if file[0] == "." or Path(file).suffix.lower() not in SUFFIXES or "__MACOSX" in above:
            return ""
        number = picture_number(file)
        if labels and number in labels and not classes.intersection(above):
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
        held = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(held.st_mode) or held.st_size != size:
        raise UserError(
            f"{name}: {path}: is there with {held.st_size:,} bytes and not the archive's {size:,}; "
            f"remove it, or prepare another folder"
        )
    return True


@contextmanager
def _alone(to: Path) -> Iterator[None]:
    """One preparation at a time writes to a folder."""
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
    root, inside = to.resolve(), set()  # `inside`: folders that lie in it
    for archive in archives:
        with _opened(name, archive) as members:
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


# The archives.


@contextmanager
def _opened(name: str, archive: Path) -> Iterator[Iterator[_Member]]:
    """The files of an archive, of which none is a link or a device or leaves the folder.

    Errors: `UserError` for those, naming the member, and for a damaged archive.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as held:
                yield _zipped(name, archive, held)
        else:
            with tarfile.open(archive) as held:
                yield _tarred(name, archive, held)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{name}: {archive}: cannot be read as an archive: {why} (is it whole?)"
        ) from None


def _tarred(name: str, archive: Path, held: tarfile.TarFile) -> Iterator[_Member]:
    while (member := held.next()) is not None:
        held.members.clear()  # type: ignore[attr-defined]  # a million of them fill the memory
        _refuse(f"{name}: {archive}", member.name, member.isfile() or member.isdir())
        if member.isfile():
            yield _Member(member.name, member.size, partial(held.extractfile, member))


def _zipped(name: str, archive: Path, held: zipfile.ZipFile) -> Iterator[_Member]:
    for member in held.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where another system made it
        _refuse(f"{name}: {archive}", member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        if not member.is_dir():
            yield _Member(member.filename, member.file_size, partial(held.open, member))


def _refuse(where: str, member: str, plain: bool) -> None:
    """Stricter than tarfile's filter `data`, which takes links inside and cuts leading slashes."""
    if not plain:
        raise UserError(f"{where}: {member}: is a link or a device; nothing was written")
    if member.startswith("/") or ".." in member.split("/"):
        raise UserError(f"{where}: {member}: leads out of the folder; nothing was written")


# ImageNet's ground truth.


def _is_truth(path: Path) -> bool:
    return path.is_dir() or path.name in TRUTHS or "devkit" in path.name


def _labels(name: str, truths: Sequence[Path], archive: Path) -> Mapping[int, str]:
    """The WordNet id of each picture's number, from given files or those beside the archive."""
    if not truths:
        try:
            return labels_of(archive.absolute().parent, name)
        except UserError as error:
            raise UserError(f"{error}; or give it, or the development kit's archive") from None
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / "truth" / "data"  # `labels_of` also looks beside it
        inner.mkdir(parents=True)
        for file, content in (pair for truth in truths for pair in _truth_files(name, truth)):
            (inner / file).write_bytes(content)
        try:
            return labels_of(inner, name)
        except UserError as error:
            told = str(error)
            for truth in truths:
                told = told.replace(str(inner / truth.name), str(truth))
            raise UserError(told.replace(str(inner), ", ".join(map(str, truths)))) from None


def _truth_files(name: str, truth: Path) -> Iterator[tuple[str, bytes]]:
    """The files that `flat.labels_of` reads, in a folder, an archive, or beside a label file."""
    if truth.is_dir() or truth.name in TRUTHS:
        places = [truth, truth / "data"] if truth.is_dir() else [truth.parent]
        names = _TRUTH_FILES if truth.is_dir() else (truth.name, "meta.mat")
        for path in (place / each for place in places for each in names):
            if path.is_file():
                yield path.name, path.read_bytes()
        return
    with _opened(name, truth) as members:
        for member in members:
            file = member.name.rpartition("/")[2]
            if file in _TRUTH_FILES:
                with member.open() as source:
                    yield file, source.read()
