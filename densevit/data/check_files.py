"""Read the files of a data set: check that they are intact, classify them, hash them.

Results are cached, so that unchanged files cost one stat each.
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
from dataclasses import replace
from hashlib import blake2b
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from densevit.data.archives import StoredImages
from densevit.data.image import (
    DEEP,
    ORIENTATION,
    Images,
    fault_of,
    open_header,
    open_image,
    root_of,
    upright_rgb,
)
from densevit.data.image_folder import FolderImages
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json
from densevit.utils.threads import processors

DIGEST_BYTES = 12  # of the hash of an image's content
_VERSION = 3  # of the cache format
_CHUNK = 500  # images per task of a worker; up to two chunks are read in this process
_JPEG = (b"\xff\xda", b"\xff\xd9")  # the markers where pixels begin and end
_MARKS = {"JPEG": _JPEG, "MPO": _JPEG, "PNG": (b"IDAT", b"IEND\xaeB`\x82")}
_TAIL = 4096  # bytes at the end of a file, in which zeros may follow the end marker


class Reading(NamedTuple):
    """The results of reading a set's files: `unreadable` ids with reasons, `odd` ids of intact
    images followed by further bytes, `kinds` with count and first id of each conversion, `sizes`
    smallest, median and largest (width, height) in pixels, by area, and `digests`, `DIGEST_BYTES`
    per image, zeros for an unreadable one; b"" if nothing was hashed."""

    unreadable: Sequence[tuple[str, str]] = ()
    odd: Sequence[str] = ()
    kinds: Sequence[tuple[str, int, str]] = ()
    sizes: Sequence[tuple[int, int]] = ()
    digests: bytes = b""
    cached: bool = False

    def contents(self, ids: Sequence[str]) -> Iterator[tuple[bytes, str]]:
        """Yield the hash and the id of each readable image."""
        for index in range(0, len(self.digests), DIGEST_BYTES):
            digest = self.digests[index : index + DIGEST_BYTES]
            if any(digest):
                yield digest, ids[index // DIGEST_BYTES]


def read_files(images: Images, hashing: bool, jobs: int | None, cache: Path | None) -> Reading:
    """Return the cached reading of a set, or read its files and cache the result.

    `hashing` hashes whole files and decodes them as a run does; without it only the beginning and
    the end of a JPEG or PNG file are read.
    `jobs` processes (default: the cores) read a large set. `cache` is a folder (default:
    `cache_folder()`).
    """
    with suppress(RuntimeError):  # no home folder
        read = cached_reading(images, hashing, cache)
        if read is not None:
            return read
    stamp = files_stamp(images)  # before reading: a file that changes meanwhile invalidates it
    checks = list(_check_files(images, hashing, jobs or processors()))
    read = _reading(images.ids, checks, hashing)
    digests = base64.b64encode(read.digests).decode()
    record = {**read._asdict(), "path": str(root_of(images)), "files": stamp, "hashed": hashing}
    record |= {"version": _VERSION, "digests": digests}
    with suppress(OSError, RuntimeError):  # a check that cannot be cached is still valid
        write_json(_entry(images, cache), record)
    return read


def cached_reading(images: Images, hashing: bool, cache: Path | None) -> Reading | None:
    """Return the cached reading of the same files, or None; with hashes if `hashing`."""
    if root_of(images) is None:
        return None
    try:
        record = read_json(_entry(images, cache))
        if record is None or record["version"] != _VERSION or hashing > record["hashed"]:
            return None
        if record["files"] != files_stamp(images):  # last, because it is expensive
            return None
        fields = {name: record[name] for name in Reading._fields}
        return Reading(**{**fields, "digests": base64.b64decode(fields["digests"]), "cached": True})
    except (UserError, KeyError, TypeError, ValueError):  # damaged: treated as missing
        return None


def cache_folder() -> Path:
    """Return the cache folder: `densevit/data-checks` in $XDG_CACHE_HOME, else in ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "densevit" / "data-checks"


def _entry(images: Images, cache: Path | None) -> Path:
    """Return the cache file of a set; its first id separates splits of a Hugging Face data set."""
    root = Path(root_of(images) or "").resolve()
    key = f"{root}\0{next(iter(images.ids), '')}".encode("utf-8", "surrogateescape")
    return (cache or cache_folder()) / f"{root.name}-{blake2b(key, digest_size=8).hexdigest()}.json"


def files_stamp(images: Images) -> str:
    """Return a digest of a set's path and of its files' names, sizes and modification times; for a
    set without files (the built-in one), of its fingerprint."""
    stamp = blake2b(json.dumps(images.fingerprint()).encode(), digest_size=16)
    root = root_of(images)
    if root is None:
        return stamp.hexdigest()
    stamp.update(str(root.resolve()).encode("utf-8", "surrogateescape"))
    paths: Iterable[str] = (f"{root}/{each}" for each in images.ids)
    if not isinstance(images, FolderImages):
        paths = [str(path) for path in (root, *sorted(root.rglob("*")))]
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116, speed
            stamp.update(b"%d %d\n" % (found.st_size, found.st_mtime_ns))
        except OSError:
            stamp.update(b"gone\n")
    return stamp.hexdigest()


class _Check(NamedTuple):
    """The result of one file: `why` it cannot be read, or "" and the other fields."""

    why: str = ""
    odd: bool = False
    kind: str = ""
    size: tuple[int, int] = (0, 0)
    digest: bytes = bytes(DIGEST_BYTES)


def _check_files(images: Images, hashing: bool, jobs: int) -> Iterator[_Check]:
    """Yield the result of each image in order; worker processes read large sets."""
    names: Sequence[Any] = images.ids if isinstance(images, FolderImages) else range(len(images))
    parts = [names[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    bare: Any = images
    if isinstance(images, StoredImages):
        bare = replace(images, classes=(), ids=(), labels=(), skipped=())
    if jobs == 1 or len(parts) < 3:
        yield from _part(names, hashing, bare)
        return
    fresh = multiprocessing.get_context("spawn")  # spawn: the caller may have threads
    with ProcessPoolExecutor(min(jobs, len(parts)), fresh, _set_images, (bare,)) as pool:
        for checks in pool.map(_part, parts, repeat(hashing)):
            yield from checks


_images: Any = None  # of a worker process: those of an archive are sent once


def _set_images(images: Any) -> None:
    global _images
    _images = images


def _part(names: Sequence[Any], hashing: bool, images: Any = None) -> list[_Check]:
    """Read files by their names in a folder or by their indices in an archive."""
    images = _images if images is None else images
    checks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about an image's header
        for name in names:
            try:
                if isinstance(images, FolderImages):
                    with open(f"{images.root}/{name}", "rb") as file:  # noqa: PTH123, speed
                        checks.append(_check_file(file, hashing))
                else:
                    checks.append(_check_file(io.BytesIO(images.read(name)), hashing))
            except Exception as error:  # a damaged file may raise anything
                checks.append(_Check(fault_of(error)))
    return checks


def _check_file(file: BinaryIO, hashing: bool) -> _Check:
    digest = bytes(DIGEST_BYTES)
    if hashing:
        content = file.read()
        digest, file = blake2b(content, digest_size=DIGEST_BYTES).digest(), io.BytesIO(content)
    length = file.seek(0, io.SEEK_END)
    if length == 0:
        return _Check("is empty")
    file.seek(max(0, length - _TAIL))
    end = file.read().rstrip(b"\0")
    file.seek(0)
    image = open_header(file)
    kind, size, odd = _kind(image), image.size, False
    if image.format in _MARKS:
        start_mark, end_mark = _MARKS[image.format]
        odd = not end.endswith(end_mark)
        if odd:  # bytes after the end are harmless, but the end must exist: zeros decode as gray
            file.seek(0)
            content = file.read()
            if content.rfind(end_mark) < content.rfind(start_mark):
                return _Check("is truncated: its end is missing")
        elif not hashing and image.mode not in DEEP:
            if "exif" in image.info:
                image.getexif().get(ORIENTATION)  # as a run does
            return _Check("", odd, kind, size, digest)
    file.seek(0)  # only decoding shows whether it is intact
    found = open_image("", file)
    upright_rgb(found.encoded, found.orientation, reduction=8 if min(size) >= 8 else 1)
    return _Check("", odd, kind, size, digest)


def _kind(image: Image.Image) -> str:
    """Describe how `densevit.data.image` converts an unusual image; "" for plain ones."""
    if image.mode.startswith("I"):
        return "of 16 bits, divided by 257"
    if image.mode == "CMYK":
        return "in CMYK, converted to RGB without a color profile"
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return "with transparency, which is dropped"
    if any(";16" in str(part) for part in getattr(image, "tile", ())):
        return "of 16 bits per channel, of which the upper 8 are kept"
    return ""


def _reading(ids: Sequence[str], checks: Sequence[_Check], hashing: bool) -> Reading:
    pairs = list(zip(ids, checks, strict=True))
    first = {check.kind: name for name, check in reversed(pairs)}
    counts = Counter(check.kind for check in checks if check.kind)
    sizes = sorted(
        (c.size for c in checks if not c.why), key=lambda size: (size[0] * size[1], size)
    )
    return Reading(
        [(name, check.why) for name, check in pairs if check.why],
        [name for name, check in pairs if check.odd],
        [(kind, count, first[kind]) for kind, count in counts.most_common()],
        [sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else [],
        b"".join(check.digest for check in checks) if hashing else b"",
    )
