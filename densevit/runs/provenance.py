"""Record how a run was made: commit, packages, machine, job."""

from __future__ import annotations

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
from densevit.utils.redact import without_password
from densevit.utils.threads import processors, threads

# Set by the sweep's launcher and by the job that contains the run.
LAUNCHER, JOB = "DENSEVIT_LAUNCHER", "DENSEVIT_JOB"
_PACKAGES = ("densevit", "torch", "torchvision", "timm", "numpy", "pillow")


def record_start(folder: RunFolder) -> None:
    """Add this start to provenance.json: code, versions, machine and command."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    start = {
        "time": time.time(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": processors(),
        "threads": threads(folder.config().threads),
        "command": without_password(shlex.join(sys.argv)),
        "launcher": os.environ.get(LAUNCHER, ""),
        "job": os.environ.get(JOB, ""),
        "versions": versions,
        **git_state(),
    }
    record = folder.provenance()
    earlier = record["starts"] if record else []
    write_json(folder.provenance_file, {"starts": [*earlier, start]})


def git_state() -> dict[str, str | None]:
    """Return the commit and the uncommitted diff of the running code; None outside a checkout.

    A code snapshot made for jobs records the commit of its source, and a `code` digest.
    """
    source = Path(__file__).resolve().parents[1]  # densevit/
    copied = read_json(source.parent / "snapshot.json")
    if copied is not None:
        return {"code": copied["digest"], **{k: copied[k] for k in ("git_sha", "git_diff")}}

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(source), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, timeout=30, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode(errors="replace")

    # A checkout that merely contains an installed copy does not describe the code.
    if not git("ls-files", "--error-unmatch", __file__):
        return {"git_sha": None, "git_diff": None}
    sha = git("rev-parse", "HEAD")
    return {"git_sha": sha.strip() if sha else None, "git_diff": git("diff", "HEAD")}
