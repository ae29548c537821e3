"""Whether the files of a data set are whole and lie as a run wants them.

`listed` looks at folders, `examine` reads the files: what is wrong is a problem, what is worth
knowing a note. What reading told is kept in a cache, so that files that have not changed cost a
stat each; `known_problems` and `quick_problems` are for a run before it starts.
"""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from densevit.data import imagenet
from densevit.data.archives import is_hugging_face, is_tar, open_hugging_face, open_tar
from densevit.data.benchmarks import TestSet
from densevit.data.flat import is_flat, open_flat
from densevit.data.folders import SUFFIXES, FolderImages, some
from densevit.data.layouts import LAYOUTS, expected_classes, misnamed
from densevit.data.pictures import Images
from densevit.errors import UserError
from densevit.rundir import read_json, write_json

QUICK = 60_000  # pictures that a run reads before it starts, at most
DIGEST_BYTES = 12  # of the hash of a picture's content
_VERSION = 1  # of the cache
_CHUNK = 500  # pictures a process is given at once; up to two such are read by this one
# Of ImageNet's own pictures, by the name that a set of its 1000 classes is given (ILSVRC 2012).
_PUBLISHED = {"train": 1_281_167, "val": 50_000}
_JPEG = (b"\xff\xda", b"\xff\xd9")  # with which pixels begin and end
_MARKS = {"JPEG": _JPEG, "MPO": _JPEG, "PNG": (b"IDAT", b"IEND\xaeB`\x82")}
_TAIL = 4096  # bytes at the end of a file, in which zeros may follow its mark


class Listing(NamedTuple):
    """What lies in a place: pictures, class folders without any (`empty`), other files (`foreign`,
    which a run leaves out), and what is wrong with its layout."""

    name: str
    images: Images
    empty: Sequence[str] = ()
    foreign: Sequence[str] = ()
    problems: Sequence[str] = ()


class Reading(NamedTuple):
    """What the files of a set told: `unreadable` ids and why, `odd` ids of whole pictures that end
    in further bytes, `kinds` how many are converted in which way and the first of them, `sizes`
    the smallest, median and largest (width, height) in pixels, by area. `digests` are
    `DIGEST_BYTES` a picture, zeros for an unreadable one; b"" where nothing was hashed."""

    unreadable: Sequence[Sequence[str]] = ()
    odd: Sequence[str] = ()
    kinds: Sequence[tuple[str, int, str]] = ()
    sizes: Sequence[tuple[int, int]] = ()
    digests: bytes = b""
    cached: bool = False

    def contents(self, ids: Sequence[str]) -> Iterator[tuple[bytes, str]]:
        """The hash of each readable picture, and its id."""
        for index in range(0, len(self.digests), DIGEST_BYTES):
            digest = self.digests[index : index + DIGEST_BYTES]
            if any(digest):
                yield digest, ids[index // DIGEST_BYTES]


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

    Errors: `UserError` if nothing is there.
    """
    layout = LAYOUTS.get(name)
    wanted = f"{layout.example}, from {layout.source}" if layout else "CLASS/picture.jpg"
    if not path.exists():
        raise UserError(f"{name}: {path}: no such folder or file (wanted {wanted})")
    if layout and layout.folders == "corruption":
        return _corruptions(name, path)
    try:
        if is_tar(path):
            images: Images = open_tar(path, name)
        elif is_hugging_face(path):
            images = open_hugging_face(path, "train" if name == "train" else "val", name)
        elif is_flat(path):
            images = open_flat(path, name)
        elif path.is_dir():
            return _walk(name, path, "")
        else:
            raise UserError(f"{name}: {path}: is no folder and no .tar file (wanted {wanted})")
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

    `hashing` compares contents; without it only the beginning and the end of a file are read.
    `jobs` processes (default: the cores) read a folder; an archive is read by this one. `cache` is
    a folder (default: `cache_folder()`).
    """
    images, layout = listing.images, LAYOUTS.get(listing.name)
    read = _reading(images, hashing, jobs, cache)
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
        return _unreadable(images, _kept(images, False, cache))
    return []


def quick_problems(
    images: Images | TestSet, jobs: int | None = None, cache: Path | None = None
) -> list[str]:
    """As `known_problems`; up to `QUICK` pictures that no check knows are checked now, by their
    first and last bytes, and what they told is kept."""
    images = images.images if isinstance(images, TestSet) else images
    if len(images) > QUICK or not hasattr(images, "root"):  # the drawn set has no files
        return known_problems(images, cache)
    return _unreadable(images, _reading(images, False, jobs, cache))


def cache_folder() -> Path:
    """Where checks are kept: `densevit/data-checks` in $XDG_CACHE_HOME, else in ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "densevit" / "data-checks"


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


def _reading(images: Images, hashing: bool, jobs: int | None, cache: Path | None) -> Reading:
    """From the cache, or from the files; it is then kept."""
    with suppress(RuntimeError):  # no home folder
        read = _kept(images, hashing, cache)
        if read is not None:
            return read
    stamp = _stamp(images)  # before they are read: a file that changes meanwhile voids it
    looks = list(_looks(images, hashing, jobs or len(os.sched_getaffinity(0))))
    read = _summed(images.ids, looks, hashing)
    digests = base64.b64encode(read.digests).decode()
    record = {**read._asdict(), "path": str(images.root), "files": stamp, "hashed": hashing}
    record |= {"version": _VERSION, "digests": digests}
    with suppress(OSError, RuntimeError):  # a check that cannot be kept is still a check
        write_json(_entry(images, cache), record)
    return read


def _kept(images: Images, hashing: bool, cache: Path | None) -> Reading | None:
    """What an earlier check of the same files told; of their contents, too, if `hashing`."""
    if not hasattr(images, "root"):
        return None
    try:
        record = read_json(_entry(images, cache))
        if record is None or record["version"] != _VERSION or hashing > record["hashed"]:
            return None
        if record["files"] != _stamp(images):  # last, for what it costs
            return None
        held = {name: record[name] for name in Reading._fields}
        return Reading(**{**held, "digests": base64.b64decode(held["digests"]), "cached": True})
    except (UserError, KeyError, TypeError, ValueError):  # damaged: as if it were not there
        return None


def _entry(images: Images, cache: Path | None) -> Path:
    """One file a place; the first id tells the splits of a Hugging Face data set apart."""
    root = Path(images.root).resolve()
    key = f"{root}\0{next(iter(images.ids), '')}".encode("utf-8", "surrogateescape")
    return (cache or cache_folder()) / f"{root.name}-{blake2b(key, digest_size=8).hexdigest()}.json"


def _stamp(images: Images) -> str:
    """A digest of the names, sizes and modification times of a set's files."""
    seen = blake2b(json.dumps(images.fingerprint()).encode(), digest_size=16)
    paths: Iterable[str] = (f"{images.root}/{each}" for each in images.ids)
    if not isinstance(images, FolderImages):
        paths = [str(path) for path in (images.root, *sorted(images.root.rglob("*")))]
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116, speed
            seen.update(b"%d %d\n" % (found.st_size, found.st_mtime_ns))
        except OSError:
            seen.update(b"gone\n")
    return seen.hexdigest()


class _Look(NamedTuple):
    """What one file told; `why` it cannot be read, or "" and the rest."""

    why: str = ""
    odd: bool = False
    kind: str = ""
    size: tuple[int, int] = (0, 0)
    digest: bytes = bytes(DIGEST_BYTES)


def _looks(images: Images, hashing: bool, jobs: int) -> Iterator[_Look]:
    """Each picture in its order; many files by processes."""
    if not isinstance(images, FolderImages):
        yield from _part(images, range(len(images)), hashing)
        return
    parts = [images.ids[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    bare = FolderImages(images.root, (), (), ())
    if jobs == 1 or len(parts) < 3:
        yield from _part(bare, images.ids, hashing)
        return
    fresh = multiprocessing.get_context("spawn")  # the caller may have threads
    with ProcessPoolExecutor(min(jobs, len(parts)), fresh) as pool:
        for looks in pool.map(_part, repeat(bare), parts, repeat(hashing)):
            yield from looks


def _part(images: Any, names: Sequence[Any], hashing: bool) -> list[_Look]:
    """What files told, by their names in a folder or by their indices in an archive."""
    looks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what a picture's header says
        for name in names:
            try:
                if isinstance(images, FolderImages):
                    with open(f"{images.root}/{name}", "rb") as file:  # noqa: PTH123, speed
                        looks.append(_look(file, hashing))
                else:
                    looks.append(_look(io.BytesIO(images.read(name)), hashing))
            except UnidentifiedImageError:
                looks.append(_Look("is no picture"))
            except Exception as error:  # whatever a damaged file brings about
                looks.append(_Look(getattr(error, "strerror", None) or str(error) or repr(error)))
    return looks


def _look(file: BinaryIO, hashing: bool) -> _Look:
    digest = bytes(DIGEST_BYTES)
    if hashing:
        content = file.read()
        digest, file = blake2b(content, digest_size=DIGEST_BYTES).digest(), io.BytesIO(content)
    length = file.seek(0, io.SEEK_END)
    if length == 0:
        return _Look("is empty")
    file.seek(max(0, length - _TAIL))
    end = file.read().rstrip(b"\0")
    file.seek(0)
    image = Image.open(file)
    if "exif" in image.info:
        image.getexif()  # as a run does for the orientation
    kind = _kind(image)
    begun, ended = _MARKS.get(image.format or "", (b"", b""))
    odd = not end.endswith(ended)
    if odd:  # bytes after the end do no harm, but it must be there: zeros decode as grey
        file.seek(0)
        content = file.read()
        if content.rfind(ended) < content.rfind(begun):
            return _Look("breaks off: its end is missing")
        image.load()
    return _Look("", odd, kind, image.size, digest)


def _kind(image: Image.Image) -> str:
    """How `densevit.data.pictures` converts a picture that is not plain; "" for others."""
    if image.mode.startswith("I"):
        return "of 16 bits, divided by 257"
    if image.mode == "CMYK":
        return "in CMYK, made RGB without a colour profile"
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return "with transparency, which is left out"
    if any(";16" in str(part) for part in image.tile):
        return "of 16 bits a channel, of which the upper 8 are kept"
    return ""


def _summed(ids: Sequence[str], looks: Sequence[_Look], hashing: bool) -> Reading:
    told = list(zip(ids, looks, strict=True))
    first = {look.kind: name for name, look in reversed(told)}
    counts = Counter(look.kind for look in looks if look.kind)
    sizes = sorted((k.size for k in looks if not k.why), key=lambda size: (size[0] * size[1], size))
    return Reading(
        [(name, look.why) for name, look in told if look.why],
        [name for name, look in told if look.odd],
        [(kind, count, first[kind]) for kind, count in counts.most_common()],
        [sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else [],
        b"".join(look.digest for look in looks) if hashing else b"",
    )
