"""The checkpoints of a run: written whole in the background, checked before they are used.

A file's name holds its step and the SHA-256 of its content, `step-00001200-5d41402abc4b2a76.pt`, so
that no second file is needed to know whether it is whole. The last two are kept.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from densevit.errors import UserError
from densevit.rundir import put, temporary_beside

log = logging.getLogger("densevit")
KEPT = 2
_DIGITS = 16  # of the digest: 64 bits tell a damaged file as surely as all 256
_NAME = re.compile(rf"step-(\d+)-([0-9a-f]{{{_DIGITS}}})\.pt")


class Checkpoints:
    """Writes the checkpoints of a run, one at a time.

    `save` copies the state and returns; a thread writes the copy. The memory for the copy is taken
    once, when the run begins, since taking it costs more than the copying. A disk that is full or
    broken costs a warning: the last good checkpoint stays, and the run goes on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepared = False
        self._copy: Any = None
        self._thread: threading.Thread | None = None

    def prepare(self, state: dict[str, Any]) -> None:
        """Take the memory for copies of such a state, in the background."""
        self.prepared = True

        def take() -> None:
            self._copy = _copied(state, None)

        self._start(take)

    def save(self, state: dict[str, Any], step: int, first: Callable[[], None]) -> None:
        """Write the state after a step; tensors and plain values only. Waits for the one before.

        `first` is called before the file appears, on the writing thread.
        """
        self.finish()
        self.prepared = True
        copy = self._copy = _copied(state, self._copy)
        # Copies from a GPU are on their way: the steps that follow queue up behind them there.
        arrived = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if arrived is not None:
            arrived.record()

        def write() -> None:
            if arrived is not None:
                arrived.synchronize()
            try:
                first()
                _write(self.folder, copy, step)
            except (OSError, RuntimeError) as error:  # of the disk, or of torch's writer
                log.warning(
                    "the checkpoint of step %d cannot be written: %s; the run goes on%s",
                    step, getattr(error, "strerror", None) or error, _last_good(self.folder),
                )  # fmt: skip

        self._start(write)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is there."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self, work: Callable[[], None]) -> None:
        self.finish()
        # No daemon: a checkpoint that was begun is finished even when the run fails meanwhile.
        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()


def load(folder: Path, run: str) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run in a folder, None if there is none at all.

    Runs no code that a file may hold. A damaged file, or one of another run, is named in a warning
    and the one before it is taken. Errors: `UserError` if none is left.
    """
    found = newest_first(folder)
    problems = []
    for path in found:
        try:
            state = read(path)
            held = state.get("run")
            if held != run:
                of = f" but of {held}" if held else ""
                raise Unusable(f"is no checkpoint of run {run}{of}")
        except Unusable as problem:
            problems.append(f"{path}: {problem}")
            continue
        for problem in problems:
            log.warning("%s; continuing from the checkpoint before it, %s", problem, path.name)
        return state
    if problems:
        raise UserError(
            f"{problems[0]}, and no other checkpoint is there to continue from; remove {folder} "
            f"to train the run from its start"
        )
    return None


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not."""
    found = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]), reverse=True)


def is_checkpoint(path: Path) -> bool:
    """Whether a file has the name of a checkpoint."""
    return _NAME.fullmatch(path.name) is not None


class Unusable(Exception):
    """Why a file cannot be continued from."""


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Errors: `Unusable`."""
    try:
        with path.open("rb") as file:
            if digest(file) != _NAME.fullmatch(path.name)[2]:
                raise Unusable("is damaged: its content is not what was written")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Unusable:
        raise
    except Exception as error:  # whatever part of the reader meets a foreign file
        reason = " ".join(str(error).split())[:200]
        raise Unusable(f"cannot be read: {reason}") from None
    if not isinstance(state, dict):
        raise Unusable("is no checkpoint")
    return state


def _write(folder: Path, state: dict[str, Any], step: int) -> None:
    older = newest_first(folder)
    with temporary_beside(folder / "step") as temporary:
        with temporary.open("w+b") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # what torch's writer makes of the file's own error
                raise error.__context__ or error from None
            file.seek(0)
            name = f"step-{step:08d}-{digest(file)}.pt"
        path = folder / name
        put(temporary, path)
    for old in [p for p in older if p != path][KEPT - 1 :]:
        old.unlink(missing_ok=True)


def digest(file: IO[bytes]) -> str:
    """What tells a file's content from any other: the beginning of its SHA-256."""
    return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def _copied(value: Any, held: Any) -> Any:
    """A copy of a state in the host's memory, in that of an earlier copy where it fits."""
    if isinstance(value, Tensor):
        fits = isinstance(held, Tensor) and held.shape == value.shape and held.dtype == value.dtype
        if not fits:
            held = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return held.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        held = held if isinstance(held, dict) else {}
        return {key: _copied(item, held.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        held = held if isinstance(held, list | tuple) else ()
        padded = [*held, *[None] * len(value)]
        return type(value)(_copied(v, h) for v, h in zip(value, padded, strict=False))
    return value


def remove_leftovers(folder: Path) -> None:
    """What writers left that were killed; the caller holds the run."""
    for path in folder.glob(".step.*"):
        path.unlink(missing_ok=True)


def _last_good(folder: Path) -> str:
    found = newest_first(folder)
    return f"; {found[0]} stays" if found else ", and there is none yet"
