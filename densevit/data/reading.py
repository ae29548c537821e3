"""Read the files of a data set: whether they are whole, what they are, and their hashes.

What they told is kept in a cache, so that files that have not changed cost a stat each.
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
from hashlib import blake2b
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from densevit.data.folders import FolderImages
from densevit.data.pictures import DEEP, Images, check_depth
from densevit.errors import UserError
from densevit.rundir import read_json, write_json

DIGEST_BYTES = 12  # of the hash of a picture's content
_VERSION = 2  # of the cache
_CHUNK = 500  # pictures a process is given at once; up to two such are read by this one
_JPEG = (b"\xff\xda", b"\xff\xd9")  # with which pixels begin and end
_MARKS = {"JPEG": _JPEG, "MPO": _JPEG, "PNG": (b"IDAT", b"IEND\xaeB`\x82")}
_TAIL = 4096  # bytes at the end of a file, in which zeros may follow its mark


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


def read_files(images: Images, hashing: bool, jobs: int | None, cache: Path | None) -> Reading:
    """What the cache keeps of a set, or its files tell; it is then kept.

    `hashing` compares contents; without it only the beginning and the end of a file are read.
    `jobs` processes (default: the cores) read a folder; an archive is read by this one. `cache` is
    a folder (default: `cache_folder()`).
    """
    with suppress(RuntimeError):  # no home folder
        read = kept(images, hashing, cache)
        if read is not None:
            return read
    stamp = files_stamp(images)  # before they are read: a file that changes meanwhile voids it
    looks = list(_looks(images, hashing, jobs or len(os.sched_getaffinity(0))))
    read = _summed(images.ids, looks, hashing)
    digests = base64.b64encode(read.digests).decode()
    record = {**read._asdict(), "path": str(images.root), "files": stamp, "hashed": hashing}
    record |= {"version": _VERSION, "digests": digests}
    with suppress(OSError, RuntimeError):  # a check that cannot be kept is still a check
        write_json(_entry(images, cache), record)
    return read


def kept(images: Images, hashing: bool, cache: Path | None) -> Reading | None:
    """What an earlier check of the same files told; of their contents, too, if `hashing`."""
    if not hasattr(images, "root"):
        return None
    try:
        record = read_json(_entry(images, cache))
        if record is None or record["version"] != _VERSION or hashing > record["hashed"]:
            return None
        if record["files"] != files_stamp(images):  # last, for what it costs
            return None
        held = {name: record[name] for name in Reading._fields}
        return Reading(**{**held, "digests": base64.b64decode(held["digests"]), "cached": True})
    except (UserError, KeyError, TypeError, ValueError):  # damaged: as if it were not there
        return None


def cache_folder() -> Path:
    """Where checks are kept: `densevit/data-checks` in $XDG_CACHE_HOME, else in ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "densevit" / "data-checks"


def _entry(images: Images, cache: Path | None) -> Path:
    """One file a place; the first id tells the splits of a Hugging Face data set apart."""
    root = Path(images.root).resolve()
    key = f"{root}\0{next(iter(images.ids), '')}".encode("utf-8", "surrogateescape")
    return (cache or cache_folder()) / f"{root.name}-{blake2b(key, digest_size=8).hexdigest()}.json"


def files_stamp(images: Images) -> str:
    """A digest of where a set lies, and of the names, sizes and modification times of its files; of
    a set without files of its own (a drawn one) of what it says of itself."""
    seen = blake2b(json.dumps(images.fingerprint()).encode(), digest_size=16)
    if not hasattr(images, "root"):
        return seen.hexdigest()
    seen.update(str(Path(images.root).resolve()).encode("utf-8", "surrogateescape"))
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
    if image.mode in DEEP:
        image.load()
        check_depth(image)
    if image.format not in _MARKS:  # only decoding tells whether it is whole
        image.load()
        return _Look("", False, kind, image.size, digest)
    begun, ended = _MARKS[image.format]
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
