"""Remove passwords from addresses in text."""

from __future__ import annotations

import re

# A database password may contain a slash, an @ or a space. In a web address, they may follow
# the host; they count as part of a password only if the first colon is not followed by a port.
# One slash instead of two is a slip that people make.
_WEB = re.compile(
    r"(\bhttps?:/{1,3})(?:[^/\s]*@|[^/:\s\[]*:(?!\d+(?:/|$))(?:\S*@|[^/@\n]*@(?=[\w.\[-])))",
    re.IGNORECASE,
)
_OTHER = re.compile(
    r"(\b(?!https?:|sqlite|file:|mlflow-artifacts:)[a-z][\w+]*:/{1,3})(?:\S*@|[^/\s@]*:[^@\n]*@)",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"((?:password|passwd|pwd)=|[?&](?:\w*token|\w*secret|\w*key|auth\w*|sig|signature)=)[^&\s#]+",
    re.IGNORECASE,
)


def without_password(text: str) -> str:
    """Remove `user:password@` from addresses, and mask the values of passwords, tokens and keys."""
    return _NAMED.sub(r"\1***", _OTHER.sub(r"\1", _WEB.sub(r"\1", text)))
