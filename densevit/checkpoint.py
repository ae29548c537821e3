"""The state of a run in one file, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from densevit.errors import UserError
from densevit.rundir import replacing

NAME = "last.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in a folder; tensors and plain values only."""
    with replacing(folder / NAME) as temporary:
        torch.save(state, temporary)


def load(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The checkpoint in a folder, None if there is none. Runs no code that the file may hold.

    Errors: `UserError` naming the file if it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a torn file fails in whatever part of the reader meets it
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is damaged and cannot be continued from: {reason}") from None
