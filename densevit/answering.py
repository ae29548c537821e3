"""Answers that outlive an interruption: what has been answered is kept, and found again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from densevit.data.benchmarks import TestSet
from densevit.data.names import CLEAN
from densevit.data.reading import files_stamp
from densevit.distributed import World, agreed
from densevit.predictions import (
    Answers,
    Areas,
    check_finite,
    joined,
    read_answers,
    source_of,
    write_answers,
)
from densevit.rundir import RunFolder

PART = 100_000  # pictures that an interruption costs at most; all sets but ImageNet-C are smaller


def recalled(path: Path, source: str, world: World) -> Answers | Areas | None:
    """The answers in a file, if `source` gave them; for all processes, or for none."""
    there = world.writes and source_of(path) == source
    return read_answers(path) if agreed(int(there), world) else None


def answered(
    ask: Callable[[range], Answers], asked: TestSet, path: Path, source: str, world: World
) -> Answers:
    """The answers to a whole test set, which `ask` gives for a range of its pictures.

    Errors: `RunError` where the network gave no numbers.
    """
    long, parts, files = len(asked) > PART, [], []
    # Of the files and not of their names alone: another folder may have the same names.
    source_of_part = f"{source}, {files_stamp(asked.images)}" if long else source
    for begin in range(0, len(asked), PART):
        file = path.parent / "parts" / f"{path.stem}-{begin}.parquet"
        part = recalled(file, source_of_part, world) if long else None
        if part is None:
            part = ask(range(begin, min(begin + PART, len(asked))))
            check_finite(part)
            if world.writes and long:
                write_answers(part, file, source_of_part)
        parts.append(part)
        files.append(file)
    whole = joined(parts)
    if world.writes:
        write_answers(whole, path, source)
        for file in files:
            file.unlink(missing_ok=True)
    return whole


def clean_answers(folder: RunFolder) -> Answers | None:
    """Those that a folder holds to an unshifted test set."""
    for name in CLEAN:
        if folder.predictions_file(name).exists():
            return read_answers(folder.predictions_file(name))
    return None
