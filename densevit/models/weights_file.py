"""Read the tensors in a file of weights, in any of the usual layouts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densevit.utils.errors import UserError

_LFS = b"version https://git-lfs"


def check_weights_file(path: Path) -> None:
    """Reject what often lies in the place of weights: nothing, a Git LFS pointer, a web page.

    Errors: `UserError` without the name of the file, which the caller knows.
    """
    with path.open("rb") as file:
        start = file.read(200)
    if not start:
        raise UserError("is empty; was its download interrupted?")
    if start.startswith(_LFS):
        raise UserError("is a pointer of Git LFS, not the weights; get them with: git lfs pull")
    if start.lstrip()[:1] == b"<":
        raise UserError("is a web page, not weights; download the file itself")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name; in nested dictionaries names are joined by dots.

    Executes no code from the file. Errors: those of the readers, and of `check_weights_file`.
    """
    check_weights_file(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # DINO's checkpoints hold their command line.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    return dict(_flat(content, "")) if isinstance(content, Mapping) else {}


def _flat(content: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
