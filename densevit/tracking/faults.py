"""What a store has against what is sent to it, in words for people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from densevit.passwords import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What a store says of a run that is not there any more, or deleted.
GONE = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}


class Silent(Exception):
    """The store answers nothing, in the words of its first fault."""


def raise_if_silent(client: MlflowClient, error: Exception) -> None:
    """Errors: `Silent`, if after some error the store does not answer an easy question either."""
    try:
        client.search_experiments(max_results=1)
    except Exception:
        raise Silent(one_line(error)) from error


def grouped(lines: Sequence[str]) -> list[str]:
    """Lines of one text about several subjects as one line."""
    subjects: dict[str, list[str]] = {}
    for line in lines:
        subject, _, text = line.partition(": ")
        subjects.setdefault(text, []).append(subject)
    return [f"{_counted(of)}: {text}" for text, of in subjects.items()]


def _counted(subjects: Sequence[str]) -> str:
    more = f" and {len(subjects) - 3} more" if len(subjects) > 3 else ""
    return ", ".join(subjects[:3]) + more


def one_line(error: Exception) -> str:
    """What is wrong, without the layers of libraries that it came through."""
    text = without_password(" ".join(str(error).split()))
    for pattern in _REASONS:
        if found := re.search(pattern, text, re.IGNORECASE):
            return f"does not answer: {found[0].lower()}"
    if found := re.search(r"error code (40[13])", text):
        return f"refuses this account ({found[1]}); {_ACCOUNT}"
    if isinstance(error, ModuleNotFoundError) and error.name in ("psycopg", "psycopg2"):
        return f"{error}; pip install 'densevit[postgres]'"
    return f"{type(error).__name__}: {text[:300]}"


_ACCOUNT = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say who you are"
_REASONS = (
    r"Connection refused|Network is unreachable|No route to host",
    r"Name or service not known|Temporary failure in name resolution",
    r"too many \d+ error responses",
    r"(read |connect )?timed out",
    r"Connection aborted|Connection reset by peer|Remote end closed connection",
    r"certificate verify failed",
)
