"""The file with the initial weights of a run, and the digest that identifies it. Imports no torch.

A run is identified by the content of `init_checkpoint`, not by its path: a file that has moved
gives the same run, and other weights at the same path give another one. Digests are cached by size
and time, so that a plan reads a file once.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from densevit.config.run_config import RunConfig
from densevit.runs.checkpoint_files import content_digest, digest_in_name, newest_first
from densevit.runs.directory import RunFolder
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json


class _Gone(UserError):
    """The initial weights are not there."""


def initial_file(source: str) -> Path:
    """Return the file that `init_checkpoint` names: itself, or the newest checkpoint of a run.

    Errors: `UserError` if there is none, or if the run is still training.
    """
    path = Path(source)
    if not path.is_dir():
        if not path.is_file():
            raise _Gone(f"init_checkpoint: {source}: no such file or run directory")
        return path
    run = RunFolder(path)
    if run.status().state == "running" and not run.results_file.exists():
        raise UserError(
            f"init_checkpoint: {source}: this run is still training, and its weights change; wait "
            f"until it has finished"
        )
    found = newest_first(run.checkpoint_folder) or newest_first(path)
    if not found:
        raise _Gone(f"init_checkpoint: {source}: the folder holds no checkpoint of a run")
    return found[0]


def initial_digest(source: str) -> str:
    """Return the digest (`content_digest`) of the file that `init_checkpoint` names.

    A checkpoint has it in its name. If the file is gone, the digest that it had is returned, since
    results outlive it. Errors: `UserError` if it was never seen here.
    """
    cache_file = _cache_file()
    known = _known(cache_file)
    earlier = known.get(source)
    earlier = earlier if isinstance(earlier, dict) else {}
    try:
        file = initial_file(source)
    except _Gone as error:
        if "sha256" in earlier:
            return str(earlier["sha256"])
        raise UserError(
            f"{error}; its content is part of a run's identity: copy it here, or give the first 16 "
            f"digits of its SHA-256 as init_sha256"
        ) from None
    found = os.stat(file)  # noqa: PTH116, its times in nanoseconds
    stamp = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    if earlier.get("stamp") == stamp and "sha256" in earlier:
        return str(earlier["sha256"])
    digest = digest_in_name(file)
    if digest is None:
        with file.open("rb") as opened:
            digest = content_digest(opened)
    known[source] = {"sha256": digest, "stamp": stamp}
    if cache_file is not None:
        with suppress(OSError):  # the cache only saves time
            write_json(cache_file, known)
    return digest


def with_initial_digest(config: RunConfig, source: str) -> RunConfig:
    """Return a configuration whose initial weights are identified by their content.

    Errors: `UserError`, beginning with `source`, if the weights are not found, or are not those of
    `init_sha256`.
    """
    if config.init_checkpoint is None:
        return config
    given = config.init_sha256
    if given is not None and not Path(config.init_checkpoint).exists():
        return config
    try:
        found = initial_digest(config.init_checkpoint)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    if given not in (None, found):
        raise UserError(
            f"{source}: init_sha256: {config.init_checkpoint}: the file has {found}, not {given}"
        )
    return config.model_copy(update={"init_sha256": found})


def check_initial(config: RunConfig) -> None:
    """Raise `UserError` if the initial weights are not those that the run was planned with."""
    source = str(config.init_checkpoint)
    file = initial_file(source)
    with file.open("rb") as opened:
        found = digest_in_name(file) or content_digest(opened)
    if found != config.init_sha256:
        raise UserError(
            f"init_checkpoint: {source}: its content has changed since this run was planned: then "
            f"{config.init_sha256}, now {found}; plan it again: other weights are another run"
        )


@cache
def _known(file: Path | None) -> dict[str, Any]:
    """Return the digests in the cache file, by `init_checkpoint`; one dictionary a process."""
    try:
        return (file and read_json(file)) or {}
    except UserError:  # damaged: treated as missing
        return {}


def _cache_file() -> Path | None:
    """Return the cache file; None without a home folder."""
    cache_folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(cache_folder).expanduser() / "densevit" / "initial-weights.json"
    except RuntimeError:
        return None
