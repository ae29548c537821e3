"""metrics.jsonl as the run writes it: whole lines, in order, none lost when the disk is full."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from densevit.errors import UserError

log = logging.getLogger("densevit")

# JSON cannot say what is not finite. It is written as these strings, which `float` reads as well.
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_json = json.JSONEncoder(allow_nan=False).encode


def number(value: Any) -> float | None:
    """What a value of a line is as a number, None if it is none; a truth value is none."""
    if isinstance(value, str):
        return NOT_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def finite(value: Any) -> float | None:
    """As `number`, with None for what is not finite too: for whoever sorts or averages."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


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
        """Append a line; numbers that are not finite as the words of `NOT_FINITE`."""
        self._waiting.append(_encoded(line) + b"\n")
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


def _encoded(line: dict[str, float]) -> bytes:
    try:
        return _json(line).encode()
    except ValueError:  # something is not finite, which is rare
        return _json({name: _worded(value) for name, value in line.items()}).encode()


def _worded(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
