"""Standard output and standard error that never end a command: closed, in ASCII, or unread."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

_T = TypeVar("_T")
_PLAIN = {
    "−": "-", "–": "-", "—": "-", "·": ".", "±": "+/-", "×": "x", "≈": "~", "≤": "<=", "≥": ">=",
    "≠": "!=", "→": "->", "†": "^", "‡": "^^", "°": " deg", "∞": "inf", "λ": "lambda", "τ": "tau",
    "σ": "sigma", "α": "alpha", "β": "beta", "μ": "mu", "µ": "mu",
}  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return text of the same meaning in ASCII, and where to go on: an error handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_ascii, text)), error.end


def _ascii(letter: str) -> str:
    plain = _PLAIN.get(letter) or unicodedata.normalize("NFKD", letter)
    return plain.encode("ascii", "ignore").decode() or ascii(letter)[1:-1]


codecs.register_error("densevit.plain", _plain)


def prepare_streams() -> None:
    """Make stdin, stdout and stderr usable whatever the command was started with.

    A closed one is opened: else the next file that is opened, say a lock, would receive what is
    printed. Letters that the encoding lacks are replaced instead of ending the command.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        replace_letters(stream)


def replace_letters(stream: object) -> None:
    """Let a stream replace the letters that its encoding lacks by plain ones."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="densevit.plain")


def discard(stream: TextIO) -> None:
    """Let a stream that nobody reads any more discard what it still holds and what follows."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Unread:
    """A stream whose reader may go away: then a notice is printed, and the rest is discarded."""

    def __init__(self, stream: TextIO, notice: Callable[[], None]) -> None:
        self._stream, self._notice = stream, notice

    def write(self, text: str) -> int:
        return self._attempt(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        self._attempt(self._stream.flush, None)

    def _attempt(self, call: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return call()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # a full disk may have room again
                return otherwise
            discard(self._stream)
            self._notice()
            return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outliving_readers() -> Iterator[None]:
    """Let the block go on if nobody reads its output any more (`| head`, a closed terminal)."""
    stdout, stderr = sys.stdout, sys.stderr

    def notice() -> None:
        print("nobody reads the output any more; the command goes on", file=sys.stderr)

    sys.stdout, sys.stderr = _Unread(stdout, notice), _Unread(stderr, lambda: None)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = stdout, stderr
