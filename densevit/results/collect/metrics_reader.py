"""Read the lines of metrics.jsonl, without incomplete or damaged ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from densevit.runs.directory import RunFolder
from densevit.utils.errors import UserError
from densevit.utils.files import read_bytes


def repeat(values: Sequence[str], counts: Sequence[int]) -> pd.api.extensions.ExtensionArray:
    """Return a column of strings that holds each value as often as its count says."""
    return pd.array(np.repeat(np.array(values, object), counts), "str")


def complete_lines(folder: RunFolder) -> bytes:
    """Return the metrics of a run up to the last complete line."""
    try:
        data = read_bytes(folder.metrics_file) or b""
    except UserError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def parse_lines(folder: RunFolder, pattern: re.Pattern[bytes]) -> Iterable[dict[str, Any]]:
    """Yield the lines of a run's metrics in which a pattern occurs, except damaged ones."""
    for line in complete_lines(folder).splitlines():
        if pattern.search(line):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found
