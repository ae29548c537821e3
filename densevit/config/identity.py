"""Run ids and cell ids: hashes of the fields that decide what a run computes."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from densevit.config.loss_modes import inapplicable
from densevit.config.run_config import SCIENCE, RunConfig, canonical

# Increase it when a default or the meaning of a field changes: old results then are other runs.
SCHEMA_VERSION = 3
ID_LENGTH = 12


class Identity(NamedTuple):
    """The hashes of `preimage` with its seed (`run`) and without (`cell`)."""

    run: str
    cell: str
    preimage: dict[str, Any]


def identity(config: RunConfig) -> Identity:
    """Return the ids of a run; they are equal on every machine and under every launcher."""
    cell = {"schema_version": SCHEMA_VERSION, "config": science(config)}
    preimage = {**cell, "seed": config.seed}
    return Identity(_digest(preimage), _digest(cell), preimage)


def science(config: RunConfig) -> dict[str, Any]:
    """Return the science fields that apply and differ from their defaults: a cell's identity.

    Initial weights are identified by their content (`init_sha256`), wherever the file is.
    """
    values, unused = config.__dict__, inapplicable(config)
    if config.init_sha256 is not None:
        unused |= {"init_checkpoint"}
    return {
        name: canonical(values[name])
        for name, default in SCIENCE.items()
        if values[name] != default and name not in unused
    }


def _digest(preimage: dict[str, Any]) -> str:
    """Return the hash of canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(preimage, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]
