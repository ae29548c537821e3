"""The errors of a store as short messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from densevit.utils.errors import reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Error codes of a store for a run that is missing or deleted.
GONE = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


class StoreUnreachable(Exception):
    """The store does not answer at all; holds the message of the first error."""


def raise_if_unreachable(client: MlflowClient, error: Exception) -> None:
    """Check that the store answers a simple query after an error. Errors: `StoreUnreachable`."""
    try:
        client.search_experiments(max_results=1)
    except Exception:
        raise StoreUnreachable(one_line(error)) from error


def grouped(lines: Sequence[str]) -> list[str]:
    """Merge lines with the same text about several subjects into one line."""
    subjects: dict[str, list[str]] = {}
    for line in lines:
        subject, _, text = line.partition(": ")
        subjects.setdefault(text, []).append(subject)
    return [f"{_first(of)}: {text}" for text, of in subjects.items()]


def _first(subjects: Sequence[str]) -> str:
    more = f" and {len(subjects) - 3} more" if len(subjects) > 3 else ""
    return ", ".join(subjects[:3]) + more


def one_line(error: Exception) -> str:
    """Return an error as one line, without the layers of libraries around it."""
    text = reason_of(error, 10_000)
    for pattern in _REASONS:
        if found := re.search(pattern, text, re.IGNORECASE):
            return f"does not answer: {found[0].lower()}"
    if found := re.search(r"error code (40[13])", text):
        return f"rejects this account ({found[1]}); {_ACCOUNT}"
    if isinstance(error, ModuleNotFoundError) and error.name in ("psycopg", "psycopg2"):
        return f"{error}; pip install 'densevit[postgres]'"
    return f"{type(error).__name__}: {text[:300]}"


_ACCOUNT = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
_REASONS = (
    r"Connection refused|Network is unreachable|No route to host",
    r"Name or service not known|Temporary failure in name resolution",
    r"too many \d+ error responses",
    r"(read |connect )?timed out",
    r"Connection aborted|Connection reset by peer|Remote end closed connection",
    r"certificate verify failed",
)
