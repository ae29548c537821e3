"""What was read from run directories before, kept so that only what has changed is read again.

A file holds rows of many runs, and of each run the stamp of the files that its rows were read
from. It is a convenience: one that is damaged, of another version or of another sweep counts as
none, and one that cannot be written is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from densevit.config import SCHEMA_VERSION
from densevit.rundir import write_atomic

VERSION = 1  # raised when the meaning of what is kept changes
# A file that changed this short before it was looked at may change again within the same tick of
# the file system's clock, and would look the same.
SETTLED_SECONDS = 2.0
_DIGEST = 32  # bytes

Stamp = tuple[int, ...]


def stamp(paths: Iterable[str]) -> Stamp:
    """What tells that files have changed: when, how long, and which; zeros for one that is not."""
    found: list[int] = []
    for path in paths:
        try:
            held = os.stat(path)  # noqa: PTH116  (many thousand times)
            found += held.st_mtime_ns, held.st_ctime_ns, held.st_size, held.st_ino
        except OSError:
            found += 0, 0, 0, 0
    return tuple(found)


def settled(seen: Stamp, when: float) -> bool:
    """Whether a stamp that was taken at a time (Unix seconds) can be relied on later."""
    return max(seen[::4]) < (when - SETTLED_SECONDS) * 1e9


class Entry(NamedTuple):
    """The rows of a run: from which one on, and how many; `note` is the reader's own."""

    stamp: Stamp
    first: int
    count: int
    note: str = ""


@dataclass(frozen=True)
class Kept:
    """Run id to its rows in a table."""

    entries: Mapping[str, Entry]
    rows: pa.Table

    def has(self, run: str, seen: Stamp) -> bool:
        """Whether there are rows of the run that were read from the files as they are now."""
        entry = self.entries.get(run)
        return entry is not None and entry.stamp == seen

    def taken(self, runs: Sequence[str]) -> Kept:
        """The rows of some runs that there are, in this order."""
        old = [self.entries[run] for run in runs]
        counts = np.array([entry.count for entry in old], np.int64)
        ends = np.cumsum(counts)
        firsts = np.array([entry.first for entry in old], np.int64)
        places = np.repeat(firsts - (ends - counts), counts) + np.arange(counts.sum())
        entries = {
            run: entry._replace(first=int(end) - entry.count)
            for run, entry, end in zip(runs, old, ends, strict=True)
        }
        whole = len(places) == len(self.rows) and bool((np.diff(places) == 1).all())
        return Kept(entries, self.rows if whole else self.rows.take(pa.array(places)))

    def with_rows(self, fresh: Kept) -> Kept:
        """These rows and fresh ones, which replace those of the same runs."""
        if not fresh.entries:
            return self
        shift = len(self.rows)
        moved = {run: e._replace(first=e.first + shift) for run, e in fresh.entries.items()}
        rows = pa.concat_tables([self.rows, fresh.rows]).unify_dictionaries().combine_chunks()
        return Kept({**self.entries, **moved}, rows)

    def counts(self) -> np.ndarray:
        """The number of rows of each run (R,)."""
        return np.array([entry.count for entry in self.entries.values()], np.int64)


def read(path: Path, about: str, schema: pa.Schema) -> Kept:
    """What a file holds that was written for the same `about`; nothing if there is no such file."""
    nothing = Kept({}, schema.empty_table())
    try:
        data = path.read_bytes()
        body = memoryview(data)[_DIGEST:]
        if _digest(body) != data[:_DIGEST]:
            return nothing
        rows = pa.ipc.open_file(pa.py_buffer(body)).read_all()
        held = json.loads((rows.schema.metadata or {})[b"kept"])
        rows = rows.replace_schema_metadata(None)
        if held["about"] != _about(about) or not rows.schema.equals(schema):
            return nothing
        entries = {
            run: Entry(tuple(seen), first, count, note)
            for run, seen, first, count, note in held["runs"]
        }
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return nothing
    return Kept(entries, rows)


def write(path: Path, about: str, kept: Kept) -> None:
    """Write a file, or leave it if that cannot be done."""
    runs = [[run, *entry] for run, entry in kept.entries.items()]
    record = json.dumps({"about": _about(about), "runs": runs})
    rows = kept.rows.combine_chunks().replace_schema_metadata({"kept": record})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as file:
        file.write_table(rows)
    body = sink.getvalue()
    with suppress(OSError):  # a folder of somebody else's, a full disk
        write_atomic(path, _digest(body) + body.to_pybytes())


def update(
    path: Path, about: str, old: Kept, fresh: Kept, runs: Iterable[str], since: float
) -> Kept:
    """The old rows and fresh ones of `runs`; written to the file if much of it is new.

    Of few new ones the file is not worth writing again: to read them again is quicker. `since` is
    when the stamps of the fresh ones were taken.
    """
    whole = old.with_rows(fresh)
    sure = {run for run, entry in fresh.entries.items() if settled(entry.stamp, since)}
    wanted = list(runs)
    unsure = fresh.entries.keys() - sure
    lasting = [run for run in wanted if run in whole.entries and run not in unsure]
    if len(sure.intersection(wanted)) * 100 > len(lasting):
        write(path, about, whole.taken(lasting))
    return whole


def now() -> float:
    """Unix seconds."""
    return time.time()


def table(columns: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Columns as a table; words become dictionaries, of which many rows share few."""
    arrays = [
        pa.array(column, field.type.value_type).dictionary_encode()
        if pa.types.is_dictionary(field.type)
        else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.table(arrays, schema=schema)


def words(places: np.ndarray, names: Sequence[str]) -> pa.Array:
    """names[places] as strings."""
    chosen = pa.DictionaryArray.from_arrays(
        pa.array(places, pa.int32()), pa.array(names, pa.large_string())
    )
    return chosen.cast(pa.large_string())


def _about(about: str) -> list[object]:
    return [VERSION, SCHEMA_VERSION, about]


def _digest(data: memoryview | pa.Buffer) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
