"""metrics.jsonl as the run writes it: whole lines, in order, none lost when the disk is full."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from densevit.errors import UserError

log = logging.getLogger("densevit")


class MetricsFile:
    """The metrics of a run that goes on from the first `kept` bytes; what follows is cut off.

    Lines that cannot be written wait for the next try. Only one process may write.
    Errors: `UserError` if the file has fewer bytes than `kept`.
    """

    def __init__(self, path: Path, kept: int) -> None:
        self.path, self.length = path, kept
        self._waiting: list[bytes] = []
        with path.open("ab") as file:
            if file.tell() < kept:
                raise UserError(
                    f"{path}: has lost lines that its checkpoint counts; remove {path.parent} to "
                    f"train the run again"
                )
            file.truncate(kept)

    def write(self, line: dict[str, float]) -> None:
        """Append a line."""
        self._waiting.append(json.dumps(line, allow_nan=False).encode() + b"\n")
        self.flush()

    def flush(self) -> bool:
        """Write the lines that wait; False if the disk does not take them."""
        data = b"".join(self._waiting)
        try:
            with self.path.open("ab") as file:
                file.truncate(self.length)  # the half line that a full disk may have left
                file.write(data)
        except OSError as error:
            log.warning(
                "%s: %s; %d lines wait to be written",
                self.path, error.strerror or error, len(self._waiting),
            )  # fmt: skip
            return False
        self.length += len(data)
        self._waiting.clear()
        return True

    def sync(self) -> None:
        """Put on the disk what was written, for what must not outlive it."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
