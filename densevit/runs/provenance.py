"""Record how a run was made: commit, packages, machine, job."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from densevit.runs.directory import RunFolder
from densevit.utils.files import read_json, write_json
from densevit.utils.leaks import secrets_in_diff
from densevit.utils.redact import without_password
from densevit.utils.threads import processors, threads

log = logging.getLogger("densevit")

# Set by the sweep's launcher and by the job that contains the run.
LAUNCHER, JOB = "DENSEVIT_LAUNCHER", "DENSEVIT_JOB"
# In the place of a diff that exists and is not recorded (the field `git_diff`).
NOT_RECORDED = "not recorded, as git_diff is false\n"
_PACKAGES = ("densevit", "torch", "torchvision", "timm", "numpy", "pillow")


def record_start(folder: RunFolder) -> None:
    """Add this start to provenance.json: code, versions, machine and command.

    It can be read by its owner alone, as the differences of a working tree may be private.
    """
    config = folder.config()
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    start = {
        "time": time.time(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": processors(),
        "threads": threads(config.threads),
        "command": without_password(shlex.join(sys.argv)),
        "launcher": os.environ.get(LAUNCHER, ""),
        "job": os.environ.get(JOB, ""),
        "versions": versions,
        **(code := git_state(diff=config.git_diff)),
    }
    if secrets := secrets_in_diff(code["git_diff"] or ""):
        log.warning(
            "provenance.json: the git diff in it holds what looks like a secret: %s; "
            "git_diff: false keeps it out", ", ".join(secrets),
        )  # fmt: skip
    record = read_json(folder.provenance_file) or {"starts": []}
    write_json(folder.provenance_file, {"starts": [*record["starts"], start]}, private=True)


def git_state(*, diff: bool = True) -> dict[str, str | None]:
    """Return the commit and the uncommitted diff of the running code; None outside a checkout.

    Without `diff`, only whether there is one. A code snapshot made for jobs records the commit of
    its source, and a `code` digest.
    """
    source = Path(__file__).resolve().parents[1]  # densevit/
    copied = read_json(source.parent / "snapshot.json")
    state: dict[str, str | None] = {"git_sha": None, "git_diff": None}
    if copied is not None:
        state = {"code": copied["digest"], **{key: copied[key] for key in state}}
    # A checkout that merely contains an installed copy does not describe the code.
    elif git_output(source, "ls-files", "--error-unmatch", __file__):
        sha = git_output(source, "rev-parse", "HEAD")
        changes = git_output(source, "diff", "HEAD")
        state = {"git_sha": sha.strip() if sha else None, "git_diff": changes}
    return state if diff or not state["git_diff"] else {**state, "git_diff": NOT_RECORDED}


def git_output(folder: Path, *arguments: str) -> str | None:
    """Return what a git command in a folder prints; None if it fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
