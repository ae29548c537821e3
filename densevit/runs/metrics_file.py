"""Write metrics.jsonl: whole lines, in order, none lost when the disk is full."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from densevit.utils.errors import LostFolder, UserError
from densevit.utils.files import read_bytes

log = logging.getLogger("densevit")

# JSON has no values that are not finite. They are written as these strings, which `float` reads.
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_REMEDY = "remove the damaged line"
_json = json.JSONEncoder(allow_nan=False).encode


def number(value: Any) -> float | None:
    """Return a logged value as a float, or None if it is not numeric (booleans are not)."""
    if isinstance(value, str):
        return NOT_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number beyond all floats, in a damaged file
        return None


def finite(value: Any) -> float | None:
    """Return a logged value as a float, or None if it is not a finite number."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


class MetricsFile:
    """The metrics file of a resumed run: its first `kept` bytes stay, the rest is cut off.

    Lines that cannot be written are buffered until the next write. Only one process may write.
    Errors: `UserError` if the file has fewer bytes than `kept`; `LostFolder` if somebody has
    removed or replaced the file since then.
    """

    def __init__(self, path: Path, kept: int) -> None:
        self.path, self.length = path, kept
        self._waiting: list[bytes] = []
        with path.open("ab") as file:
            if file.tell() < kept:
                raise UserError(
                    f"{path}: is shorter than when its checkpoint was written; "
                    f"remove {path.parent} to train the run again"
                )
            file.truncate(kept)

    def write(self, line: dict[str, float]) -> None:
        """Append a line; numbers that are not finite become the strings of `NOT_FINITE`."""
        self._waiting.append(_encoded(line) + b"\n")
        self.flush()

    def flush(self) -> bool:
        """Write the buffered lines; return False if the disk does not accept them."""
        data = b"".join(self._waiting)
        try:
            with self.path.open("r+b") as file:
                # In a new file, truncate would put zeros in the place of the lines that are gone.
                if file.seek(0, os.SEEK_END) < self.length:
                    raise FileNotFoundError
                file.truncate(self.length)  # a full disk may have left half a line
                file.seek(self.length)
                file.write(data)
        except FileNotFoundError:
            raise LostFolder(
                f"{self.path}: was removed or replaced while the run was trained; start it again"
            ) from None
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
        """Sync the file to disk before writing a file that must not survive without it."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


def _encoded(line: dict[str, float]) -> bytes:
    try:
        return _json(line).encode()
    except ValueError:  # a value is not finite, which is rare
        return _json({name: _json_value(value) for name, value in line.items()}).encode()


def _json_value(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def read_metrics(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the complete lines of a metrics file from a byte offset, and the offset after them.

    Errors: `UserError` if a line is damaged.
    """
    data = read_bytes(path, offset)
    if data is None:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.split(b"\n")
    return [_parsed(path, line) for line in lines if line.strip()], offset + len(whole)


def _parsed(path: Path, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read: {error}; {_REMEDY}") from None
    except RecursionError:
        raise UserError(f"{path}: cannot be read: it is nested too deeply; {_REMEDY}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: is damaged: a line is no JSON object; {_REMEDY}")
    return found
