"""How the runs of a sweep are made again, and what made them: commands, code, machines, data."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from densevit import yamlfile
from densevit.config import FIELDS, RunConfig
from densevit.errors import UserError
from densevit.rundir import read_json, run_folder
from densevit.sweep.plan import Plan

# Execution fields without which a run would be measured on other data, or on less.
MEASURED_ON = ("data_dir", "benchmarks", "probes", "masks")
LOOKED_INTO = 1000  # runs whose provenance is read; of more, evenly chosen ones


def train_command(config: RunConfig) -> str:
    """The `densevit train` line that is this run: every field that is not at its default, quoted
    for a shell. Parsed, it gives the same run id."""
    words = ["densevit", "train"]
    settings = {**config.science(), "seed": config.seed}
    for name in MEASURED_ON:
        value = getattr(config, name)
        if value != FIELDS[name].get_default():
            settings[name] = value
    for name, value in settings.items():
        flag, text = f"--{name.replace('_', '-')}", flag_text(name, value)
        words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return shlex.join(words)


def flag_text(name: str, value: Any) -> str:
    """A field's value as its flag takes it: text as it is, all else as YAML on one line."""
    if isinstance(value, str) and FIELDS[name].annotation in (str, str | None):
        return value
    if isinstance(value, str) and _reads_as_itself(value):
        return value
    return json.dumps(value, ensure_ascii=False, default=lambda record: record.model_dump())


def _reads_as_itself(text: str) -> bool:
    try:
        return yamlfile.parse(f"value: {text}", "a flag") == {"value": text}
    except UserError:
        return False


@dataclass(frozen=True)
class Origin:
    """What some runs have in common; `runs` counts them. `code` is the commit, and `changed` tells
    whether the code differed from it; `data` is a short hash of the data's fingerprint."""

    runs: int
    code: str
    changed: bool
    versions: str
    hosts: tuple[str, ...]
    data: str


@dataclass(frozen=True)
class Provenance:
    """Where the looked-at runs come from, the most frequent origin first; `data` has, for each
    short hash, how many pictures each set has."""

    looked: int
    began: int
    origins: Sequence[Origin]
    data: dict[str, str]


def provenance(plan: Plan, runs: Sequence[str]) -> Provenance:
    """What the last start of each of the runs says of code, versions, machine and data."""
    chosen = runs[:: -(-len(runs) // LOOKED_INTO)] if runs else []
    kinds: Counter[tuple[str, bool, str, str]] = Counter()
    hosts: dict[tuple[str, bool, str, str], set[str]] = {}
    data: dict[str, str] = {}
    for run in chosen:
        start, seen = _read(plan, run)
        if start is None:
            continue
        print_, told = _fingerprint(seen)
        data[print_] = told
        kind = (_code(start), bool(start.get("git_diff")), _versions(start), print_)
        kinds[kind] += 1
        hosts.setdefault(kind, set()).add(str(start.get("host", "?")))
    origins = [
        Origin(number, kind[0], kind[1], kind[2], tuple(sorted(hosts[kind])), kind[3])
        for kind, number in kinds.most_common()
    ]
    return Provenance(len(chosen), sum(kinds.values()), origins, data)


def _read(plan: Plan, run: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """A run's last start and its fingerprint; a file that cannot be read says nothing."""
    folder = run_folder(plan.outputs, run)
    try:
        starts = (read_json(folder.provenance_file) or {}).get("starts") or [None]
        return starts[-1], read_json(folder.fingerprint_file)
    except (UserError, AttributeError, TypeError):
        return None, None


def _code(start: dict[str, Any]) -> str:
    return str(start.get("git_sha") or "no commit known")[:12]


def _versions(start: dict[str, Any]) -> str:
    told = start.get("versions") or {}
    names = ("densevit", "torch", "timm", "python")
    return ", ".join(f"{name} {told[name]}" for name in names if name in told)


def _fingerprint(seen: dict[str, Any] | None) -> tuple[str, str]:
    """A short hash of what the data looked like, and how many pictures each set had."""
    if not seen:
        return "unknown", ""
    text = json.dumps(seen, sort_keys=True)
    sets = {"train": seen.get("train"), "val": seen.get("val"), **(seen.get("benchmarks") or {})}
    return hashlib.sha256(text.encode()).hexdigest()[:12], ", ".join(_pictures(sets.items()))


def _pictures(sets: Iterable[tuple[str, Any]]) -> list[str]:
    """`val 600`: the sets that say how many pictures they have."""
    return [
        f"{name} {told['images']}" if isinstance(told, dict) and "images" in told else name
        for name, told in sets
        if told
    ]
