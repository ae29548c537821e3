"""Addresses as they may be shown."""

from __future__ import annotations

import re

# A database's password may hold a slash, or an @; behind a server's name come slashes, and then it
# may, unless what follows the first colon is no port.
_WEB = re.compile(r"(\bhttps?://)(?:[^/\s]*@|[^/:\s\[]*:(?!\d+(?:/|$))\S*@)", re.IGNORECASE)
_OTHER = re.compile(r"(\b(?!https?:|sqlite)[a-z][\w+]*://)\S*@", re.IGNORECASE)
_NAMED = re.compile(r"((?:password|passwd|pwd)=)[^&\s]+", re.IGNORECASE)


def without_password(text: str) -> str:
    """Text whose addresses have lost their `user:password@`, and what is named a password."""
    return _NAMED.sub(r"\1***", _OTHER.sub(r"\1", _WEB.sub(r"\1", text)))
