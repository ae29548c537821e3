"""Commands that reproduce a sweep's runs, and their provenance: code, machines, data."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from densevit.config import yaml_file
from densevit.config.identity import science
from densevit.config.run_config import FIELDS, RunConfig
from densevit.runs.directory import run_folder
from densevit.runs.records import FingerprintRecord, Start
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError

# Execution fields that determine the data a run is measured on.
MEASURED_ON = ("data_dir", "benchmarks", "probes", "masks")
NEEDED = ("init_checkpoint", *MEASURED_ON)  # besides what identifies a run
MOST_READ = 1000  # runs whose provenance is read; more are sampled evenly


def train_command(config: RunConfig) -> str:
    """Return the `densevit train` command of this run, quoted for a shell.

    It holds every field that is not at its default. Parsing it gives the same run id.
    """
    words = ["densevit", "train"]
    settings = {**science(config), "seed": config.seed}
    for name in NEEDED:
        value = getattr(config, name)
        if value != FIELDS[name].get_default():
            settings[name] = value
    for name, value in settings.items():
        flag, text = f"--{name.replace('_', '-')}", flag_text(name, value)
        words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return shlex.join(words)


def flag_text(name: str, value: Any) -> str:
    """Return a field's value as its flag takes it: text verbatim, all else as YAML on one line."""
    if isinstance(value, str) and FIELDS[name].annotation in (str, str | None):
        return value
    if isinstance(value, str) and _reads_as_itself(value):
        return value
    return json.dumps(value, ensure_ascii=False, default=lambda record: record.model_dump())


def _reads_as_itself(text: str) -> bool:
    try:
        return yaml_file.parse(f"value: {text}", "a flag") == {"value": text}
    except UserError:
        return False


@dataclass(frozen=True)
class Origin:
    """The provenance that `runs` runs share.

    `code` is the commit; `changed` is true if the code differed from it. `data` is a short hash of
    the data's fingerprint. `threads` is 0 if it was not recorded.
    """

    runs: int
    code: str
    changed: bool
    versions: str
    threads: int
    hosts: tuple[str, ...]
    data: str


@dataclass(frozen=True)
class Provenance:
    """Origins of the sampled runs, most frequent first.

    `data`: images per set by short hash. `mixed`: the labels of cells whose runs computed with
    different numbers of threads.
    """

    began: int
    origins: Sequence[Origin]
    data: dict[str, str]
    mixed: Sequence[str] = ()


def provenance(plan: Plan, runs: Sequence[str]) -> Provenance:
    """Return code, versions, machine and data of the last start of each run."""
    chosen = runs[:: -(-len(runs) // MOST_READ)] if runs else []
    kinds: Counter[tuple[str, bool, str, int, str]] = Counter()
    hosts: dict[tuple[str, bool, str, int, str], set[str]] = {}
    data: dict[str, str] = {}
    labels = {run.id: plan.label(run) for run in plan.runs}
    threads: dict[str, set[int]] = {}
    for run in chosen:
        start, fingerprint = _read(plan, run)
        if start is None:
            continue
        short_hash, sizes = _data(fingerprint)
        data[short_hash] = sizes
        used = start.get("threads", 0)
        kind = (_code(start), bool(start.get("git_diff")), _versions(start), used, short_hash)
        kinds[kind] += 1
        hosts.setdefault(kind, set()).add(str(start.get("host", "?")))
        threads.setdefault(labels[run], set()).add(used)
    origins = [
        Origin(number, *kind[:4], tuple(sorted(hosts[kind])), kind[4])
        for kind, number in kinds.most_common()
    ]
    mixed = [label for label, found in threads.items() if len(found - {0}) > 1]
    return Provenance(sum(kinds.values()), origins, data, mixed)


def _read(plan: Plan, run: str) -> tuple[Start | None, FingerprintRecord | None]:
    """Return a run's last start and its fingerprint; both None if a file is damaged.

    Another user's provenance.json is for that user alone: then nothing is known but the images.
    """
    folder = run_folder(plan.outputs, run)
    file = folder.provenance_file
    try:
        if file.exists() and not os.access(file, os.R_OK):
            return {}, folder.fingerprint()
        record = folder.provenance()
        starts = record["starts"] if record else []
        return (starts[-1] if starts else None), folder.fingerprint()
    except UserError:
        return None, None


def _code(start: Start) -> str:
    return str(start.get("git_sha") or "unknown")[:12]


def _versions(start: Start) -> str:
    versions = start.get("versions") or {}
    names = ("densevit", "torch", "timm", "python")
    return ", ".join(f"{name} {versions[name]}" for name in names if name in versions)


def _data(fingerprint: FingerprintRecord | None) -> tuple[str, str]:
    """Return a short hash of the data's fingerprint, and each set's number of images if recorded:
    `train 4000, val 600`."""
    if not fingerprint:
        return "unknown", ""
    images = {name: record for name, record in fingerprint.items() if name != "init_checkpoint"}
    text = json.dumps(images, sort_keys=True)
    names = ("train", "val")
    sets = {name: fingerprint.get(name) for name in names} | (fingerprint.get("benchmarks") or {})
    sizes = [
        f"{name} {record['images']}" if isinstance(record, dict) and "images" in record else name
        for name, record in sets.items()
        if record
    ]
    return hashlib.sha256(text.encode()).hexdigest()[:12], ", ".join(sizes)
