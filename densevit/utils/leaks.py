"""Names and contents of files that look like secrets, to warn of them before they are copied."""

from __future__ import annotations

import re
from fnmatch import fnmatch

_NAMES = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "id_rsa*", "id_dsa*",
    "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".git-credentials", ".htpasswd",
    "credentials", "credentials.*", "secrets", "secrets.*",
)  # fmt: skip
_CONTENTS = {
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[0-9A-Za-z]{30,}|github_pat_\w{30,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Hugging Face token": r"\bhf_[0-9A-Za-z]{30,}",
    "an API key": r"\bsk-[0-9A-Za-z_-]{20,}",
    "a Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
}


def secret_name(name: str) -> bool:
    """Return True if a file's name, without its folder, is one that files of secrets have."""
    return any(fnmatch(name.lower(), pattern) for pattern in _NAMES)


def secrets_in(text: str) -> list[str]:
    """Return the kinds of secrets that a text seems to hold, such as `a private key`."""
    return [kind for kind, pattern in _CONTENTS.items() if re.search(pattern, text)]


def secrets_in_diff(diff: str) -> list[str]:
    """Return the files of a git diff that look like secrets, each with the reason."""
    found = []
    for part in re.split(r"^diff --git ", diff, flags=re.MULTILINE)[1:]:
        name = part.partition("\n")[0].rpartition(" ")[2].removeprefix("b/")
        found += reasons(name, part)
    return found


def reasons(path: str, text: str) -> list[str]:
    """Return why a file looks like a secret, with its path; empty if it does not."""
    found = secrets_in(text)
    if not found and secret_name(path.rpartition("/")[2]):
        found = ["a secret, by its name"]
    return [f"{path} ({kind})" for kind in found]
