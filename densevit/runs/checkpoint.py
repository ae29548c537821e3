"""Checkpoints of a run: written atomically in the background, verified before use.

The last two are kept; `checkpoint_files` names them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densevit.runs.checkpoint_files import (
    checkpoint_name,
    content_digest,
    digest_in_name,
    newest_first,
)
from densevit.utils.errors import UserError, reason_of
from densevit.utils.files import put, temporary_beside

log = logging.getLogger("densevit")
KEPT = 2


class Checkpoints:
    """The writer of a run's checkpoints, one at a time.

    `save` copies the state and returns; a thread writes the copy. The memory for the copy is
    allocated once, when the run begins, because allocating costs more than copying. A full or
    broken disk causes a warning: the last good checkpoint stays, and the run continues.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepared = False
        self._copy: Any = None
        self._thread: threading.Thread | None = None

    def prepare(self, state: dict[str, Any]) -> None:
        """Allocate memory for copies of such a state, in the background."""
        self.prepared = True

        def allocate() -> None:
            self._copy = _copied(state, None)

        self._start(allocate)

    def save(self, state: dict[str, Any], step: int, first: Callable[[], None]) -> None:
        """Write the state after a step (tensors and plain values only), after the previous write.

        `first` is called on the writing thread before the file appears.
        """
        self.finish()
        self.prepared = True
        copy = self._copy = _copied(state, self._copy)
        # Copies from a GPU are asynchronous; the GPU runs the next steps after them.
        on_gpu = torch.cuda.is_initialized()
        arrived = torch.cuda.Event() if on_gpu else None
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
                    "the checkpoint of step %d cannot be written: %s; the run continues%s",
                    step, getattr(error, "strerror", None) or error, _last_good(self.folder),
                )  # fmt: skip

        self._start(write)

    @property
    def busy(self) -> bool:
        """Return True while a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Wait until the current checkpoint is written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self, target: Callable[[], None]) -> None:
        self.finish()
        # Not a daemon thread: a started checkpoint is finished even if the run fails meanwhile.
        self._thread = threading.Thread(target=target, name="checkpoint")
        self._thread.start()


def load(folder: Path, run: str) -> dict[str, Any] | None:
    """Return the newest intact checkpoint of a run in a folder, or None if the folder has none.

    Executes no code from the file. A damaged file, or one of another run, is reported in a warning
    and the previous one is used. Errors: `UserError` if files exist but none is usable.
    """
    problems = []
    for path in newest_first(folder):
        try:
            state = read(path)
            owner = state.get("run")
            if owner != run:
                of = f" but of {owner}" if owner else ""
                raise Unusable(f"is no checkpoint of run {run}{of}")
        except Unusable as error:
            problems.append(f"{path}: {error}")
            continue
        for problem in problems:
            log.warning("%s; continuing from the checkpoint before it, %s", problem, path.name)
        return state
    if problems:
        raise UserError(
            f"{problems[0]}, and there is no other checkpoint to resume from; remove {folder} "
            f"to train the run from its start"
        )
    return None


class Unusable(Exception):
    """The reason why a file cannot be resumed from."""


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU. Errors: `Unusable`."""
    try:
        with path.open("rb") as file:
            if content_digest(file) != digest_in_name(path):
                raise Unusable("is damaged: its content is not what was written")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Unusable:
        raise
    except Exception as error:  # a foreign file may fail in any part of the reader
        reason = reason_of(error)
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
            except RuntimeError as error:  # torch's writer wraps the file's own error
                raise error.__context__ or error from None
            file.seek(0)
            name = checkpoint_name(step, content_digest(file))
        path = folder / name
        put(temporary, path)
    for old in [p for p in older if p != path][KEPT - 1 :]:
        old.unlink(missing_ok=True)


def _copied(value: Any, buffer: Any) -> Any:
    """Copy a state to host memory, reusing the memory of an earlier copy where it fits."""
    if isinstance(value, Tensor):
        fits = (
            isinstance(buffer, Tensor)
            and buffer.shape == value.shape
            and buffer.dtype == value.dtype
        )
        if not fits:
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return buffer.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        buffers = buffer if isinstance(buffer, dict) else {}
        return {key: _copied(item, buffers.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        earlier = buffer if isinstance(buffer, list | tuple) else ()
        padded = [*earlier, *[None] * len(value)]
        return type(value)(_copied(v, b) for v, b in zip(value, padded, strict=False))
    return value


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed writers; the caller holds the run's lock."""
    for path in folder.glob(".step.*"):
        path.unlink(missing_ok=True)


def _last_good(folder: Path) -> str:
    found = newest_first(folder)
    return f"; {found[0]} stays" if found else ", and there is none yet"
