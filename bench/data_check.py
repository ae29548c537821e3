"""Measure `densevit data check` against merely reading the files.

    python bench/data_check.py [--count N] [--side PIXELS] [--jobs N] [--rounds N]

Writes `--count` small JPEG files of different contents into a temporary folder, in a thousand class
folders, and times, after one round that is left out:

    reading   every file opened and read, one after the other by one process
    ends      the check without hashing: header and end of each file
    contents  the check with hashing
    again     the check of files that were checked before, which are only looked up

Checks are timed whole, with listing the folder and starting processes. Prints a Markdown table of
medians with the ratio to reading. `--json` writes all of it.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import markdown, seconds_of, write_record
from PIL import Image

from densevit.cli.parser import positive
from densevit.data.check_folders import examine, listed

FOLDERS = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("data_check.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--count", type=positive, default=50_000, help="files (%(default)s)")
    add("--side", type=positive, default=64, help="pixels per side of an image (%(default)s)")
    add("--jobs", type=positive, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    add("--rounds", type=positive, default=3, help="(%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "val"
        size = write_files(root, options.count, options.side)
        seconds = measure(root, options.jobs, options.rounds)
    print(f"{options.count:,} files of {size:,} bytes, {options.jobs} processes\n")
    print(table(seconds))
    if options.json:
        write_record(options.json, "data_check.py", given, bytes=size, seconds=seconds)
    return 0


def write_files(root: Path, count: int, side: int) -> int:
    """Write `count` JPEG files that differ in a comment; return the bytes of one."""
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    head, rest = buffer.getvalue()[:2], buffer.getvalue()[2:]
    for number in range(count):
        path = root / f"{number % FOLDERS:04}" / f"{number:08}.jpg"
        if number < FOLDERS:
            path.parent.mkdir(parents=True)
        path.write_bytes(head + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + rest)
    return len(head) + 8 + len(rest)


def measure(root: Path, jobs: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round but the first."""

    def check(cache: Path, hashing: bool = True) -> None:
        examine(listed("val", root), hashing, jobs, cache)

    cached = root.parent / "cached"
    check(cached)
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        fresh = [root.parent / f"{number}-{kind}" for kind in ("ends", "contents")]
        for name, call in {
            "reading": lambda: _read(root),
            "ends": lambda cache=fresh[0]: check(cache, hashing=False),
            "contents": lambda cache=fresh[1]: check(cache),
            "again": lambda: check(cached),
        }.items():
            seconds.setdefault(name, []).append(seconds_of(call))
    return {name: values[1:] for name, values in seconds.items()}


def _read(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb", buffering=0) as file:  # noqa: PTH118, PTH123
                file.read()


def table(seconds: dict[str, list[float]]) -> str:
    """Return the medians in Markdown."""
    reading = statistics.median(seconds["reading"])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [[name, f"{value:.2f}", f"{value / reading:.2f}"] for name, value in medians.items()]
    return markdown(["", "seconds", "ratio to reading"], rows)


if __name__ == "__main__":
    sys.exit(main())
