"""Remove passwords from URLs in text."""

from __future__ import annotations

import re

# A database password may contain a slash or an @. In a web address, slashes and @ may follow the
# host, so they count as part of a password only if the first colon is not followed by a port.
_WEB = re.compile(r"(\bhttps?://)(?:[^/\s]*@|[^/:\s\[]*:(?!\d+(?:/|$))\S*@)", re.IGNORECASE)
_OTHER = re.compile(r"(\b(?!https?:|sqlite)[a-z][\w+]*://)\S*@", re.IGNORECASE)
_NAMED = re.compile(r"((?:password|passwd|pwd)=)[^&\s]+", re.IGNORECASE)


def without_password(text: str) -> str:
    """Remove `user:password@` from URLs and mask the values of password parameters."""
    return _NAMED.sub(r"\1***", _OTHER.sub(r"\1", _WEB.sub(r"\1", text)))
