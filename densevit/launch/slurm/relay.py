"""Slurm's commands for runs that cannot call them, in a container without Slurm.

The batch script stays outside of the container. It executes the commands that a run writes into a
folder of the job, and writes back what they print.
"""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from densevit.utils.files import write_atomic

_FOLDER = "DENSEVIT_RELAY"
_POLL_SECONDS = 0.2
_LOOP = r"""(while sleep 1; do for ask in "$DENSEVIT_RELAY"/*.ask; do
  [ -f "$ask" ] || continue
  mapfile -t words < "$ask"; rm "$ask"; to=${ask%.ask}
  case ${words[0]} in scontrol | scancel | squeue | sacct) "${words[@]}" ;; *) false ;; esac \
    > "$to.out" 2> "$to.err" < /dev/null
  echo $? > "$to.new"; mv "$to.new" "$to.code"
done; done) &"""


def lines(jobs_folder: Path) -> list[str]:
    """Return the lines of a batch script that start the relay of its job."""
    folder = shlex.quote(str(jobs_folder))
    return [
        f"export {_FOLDER}=$(mktemp -d {folder}/relay-XXXXXXXX)",
        f"trap 'rm -rf \"${_FOLDER}\"' EXIT",
        *_LOOP.splitlines(),
    ]


def available() -> bool:
    """Return True in a job with a relay."""
    return _FOLDER in os.environ


def run(command: Sequence[str], patience: float) -> subprocess.CompletedProcess[str]:
    """Have the batch script execute a command. Errors: `TimeoutExpired` if it does not."""
    request = Path(os.environ[_FOLDER]) / secrets.token_hex(6)
    write_atomic(request.with_suffix(".ask"), "".join(f"{word}\n" for word in command))
    code, deadline = request.with_suffix(".code"), time.monotonic() + patience
    while not code.exists():
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(command[0], patience)
        time.sleep(_POLL_SECONDS)
    said = [request.with_suffix(end).read_text(errors="replace") for end in (".out", ".err")]
    return subprocess.CompletedProcess(list(command), int(code.read_text()), *said)
