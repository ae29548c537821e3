"""Fingerprint images by what a number depends on: their labels, and the content of their files.

Of large sets a sample of the files is read, spread over the set: other images under the same names
are recognized, single ones that were replaced may not be. The result is cached by size and time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import blake2b, sha256
from itertools import chain
from pathlib import Path
from typing import Any

from densevit.data.archives import ArchivedImages
from densevit.data.check_files import cache_folder, files_stamp
from densevit.data.image import Images, chosen_labels, root_of
from densevit.data.image_folder import FolderImages
from densevit.data.test_set import TestSet
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json

MOST_READ = 5000  # files of a set
_END = 4096  # bytes at the beginning and the end of a file


def fingerprint(images: Images | TestSet) -> dict[str, object]:
    """Return the set's own fingerprint (counts and names) with hashes of labels and content.

    A drawn set has neither: its version determines every pixel.
    """
    own = images.fingerprint()
    base = images.images if isinstance(images, TestSet) else images
    if root_of(base) is None:
        return own
    labels = sha256("\n".join(images.classes).encode("utf-8", "surrogateescape"))
    labels.update(chosen_labels(images.labels, range(len(images))).tobytes())
    return {**own, "labels": labels.hexdigest()[:16], "content": _content(base)}


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of `then` that differ in `now`; parts that only one of them has count not:
    earlier versions had fewer."""
    return {key: value for key, value in then.items() if key in now and now[key] != value}


def _content(images: Images) -> str:
    """Return a hash of the sampled files: their sizes, beginnings and ends."""
    size = min(MOST_READ, len(images))
    chosen = [place * len(images) // size for place in range(size)]
    stamp, file = _stamp(images, chosen), _cache_file(images)
    with suppress(UserError):  # damaged: treated as missing
        known = (file and read_json(file)) or {}
        if known.get("stamp") == stamp and isinstance(known.get("content"), str):
            return str(known["content"])
    found = sha256()
    for index in chosen:
        found.update(_ends(images, index))
    content = found.hexdigest()[:16]
    if file is not None:
        with suppress(OSError):  # the cache only saves time
            write_json(file, {"stamp": stamp, "content": content, "path": str(root_of(images))})
    return content


def _ends(images: Images, index: int) -> bytes:
    """Return the size of an image's file, its beginning and end; a mark for an unreadable one."""
    try:
        if isinstance(images, ArchivedImages):
            content = images.content(index)
            return b"%d " % len(content) + content[:_END] + content[-_END:]
        with open(f"{root_of(images)}/{images.ids[index]}", "rb", buffering=0) as file:  # noqa: PTH123, speed
            size = os.fstat(file.fileno()).st_size
            start = file.read(_END)
            file.seek(max(0, size - _END))
            return b"%d " % size + start + file.read(_END)
    except (OSError, ValueError, KeyError):
        return b"unreadable"


def _stamp(images: Images, chosen: list[int]) -> str:
    """Return a digest of sizes and times: of the sampled files in a folder, or of an archive."""
    if not isinstance(images, FolderImages):
        return files_stamp(images)
    stamp = blake2b(digest_size=16)
    for index in chosen:
        try:
            found = os.stat(f"{images.root}/{images.ids[index]}")  # noqa: PTH116, speed
            times = found.st_size, found.st_mtime_ns, found.st_ctime_ns
            stamp.update(b"%d %d %d\n" % times)
        except OSError:
            stamp.update(b"gone\n")
    return stamp.hexdigest()


def _cache_file(images: Images) -> Path | None:
    """Return the cache file of a set, by its path and names; None without a home folder."""
    key = blake2b(digest_size=8)
    for part in chain([str(root_of(images))], images.ids):
        key.update(part.encode("utf-8", "surrogateescape") + b"\0")
    with suppress(RuntimeError):
        return cache_folder() / f"content-{key.hexdigest()}.json"
    return None
