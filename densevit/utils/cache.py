"""A cache folder that can be written, where the home folder is read-only."""

from __future__ import annotations

import os
from pathlib import Path

from densevit.utils.console import warn

# Variables of libraries whose caches may hold downloads: these are read where they are.
_DOWNLOADS = {"HF_HOME": "huggingface", "TORCH_HOME": "torch"}


def use_writable_cache(outputs: Path) -> None:
    """Let this process and those that it starts keep their caches in OUTPUTS/cache, and say so, if
    the user's cache folder ($XDG_CACHE_HOME, else ~/.cache) cannot be written."""
    given = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        folder = given.expanduser()
    except RuntimeError:  # a user without a home folder
        folder = None
    if folder is not None and _writable(folder):
        return
    cache = outputs / "cache"
    for variable, name in _DOWNLOADS.items():
        if folder is not None and os.path.isdir(folder / name):  # noqa: PTH112
            os.environ.setdefault(variable, str(folder / name))
    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    line = f"{folder or given}: cannot be written; {cache} holds the caches instead"
    warn(line)


def use_own_compile_cache() -> None:
    """Keep compiled code in a folder of this user's: torch's default is in /tmp by the user's name,
    and torch runs what is there, also if somebody else has made it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "densevit" / "torchinductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _writable(folder: Path) -> bool:
    """Return whether a folder can be written, or created. Creates nothing."""
    # os.path takes what another user may not look at as missing; pathlib raises an error.
    places = (folder, *folder.absolute().parents)
    there = next(each for each in places if os.path.exists(each))  # noqa: PTH110
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
