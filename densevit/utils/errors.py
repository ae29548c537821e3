"""Exceptions that end a command early: each is one line for the user and an exit code."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

from densevit.utils.escape import visible
from densevit.utils.redact import without_password
from densevit.utils.streams import discard

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_CARRY_ON = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes


class UserError(Exception):
    """A mistake that the user can fix; commands print it as one line and exit with 2."""


class RunError(Exception):
    """A run that cannot continue, with the reason in one line; exit code 1."""


class LostFolder(RunError):
    """A run whose directory has been removed or replaced: it must write nothing more."""


class Diverged(RunError):
    """A run whose loss or gradient is no longer finite."""


class Unreachable(Exception):
    """A required service that does not respond; the same command resumes later. Exit code 75."""


class Stopped(Exception):
    """A run that stopped on request and can be resumed. Exit code 75."""


class StoppedNow(Stopped):
    """A run that a second request stopped within a step: nothing can be saved."""


def reason_of(error: Exception, most: int = 200) -> str:
    """Return an error's message as one line of at most `most` characters, or else its type.

    Passwords in URLs are removed, before the line is cut.
    """
    return without_password(" ".join(str(error).split()))[:most] or type(error).__name__


def own_message(text: str) -> str:
    """Return the message of a `UserError`, without the traceback that a DataLoader worker adds."""
    return text.strip().rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2]


def nearest(name: object, valid: Iterable[str]) -> str:
    """Return a hint for a wrong name: the closest valid name, or else the valid names.

    A name that is among the valid ones, but wrong where it was given, is not suggested.
    """
    names = sorted({str(v) for v in valid} - {str(name)})
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"valid: {shown}" if names else "none is valid"


def _flushed(work: Callable[[], int]) -> int:
    """Do some work and flush its output, so that an error of the last lines comes now and not at
    exit. It may end itself, as `--help` does."""
    try:
        code = work()
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _complain(program: str, text: object) -> None:
    print(visible(f"{program}: {text}"), file=sys.stderr)


def exit_code(program: str, work: Callable[[], int]) -> int:
    """Return the exit code of some work; print its errors as one line each."""
    try:
        return _flushed(work)
    except UserError as error:
        _complain(program, own_message(str(error)))
        return EXIT_MISTAKE
    except RunError as error:
        _complain(program, error)
        return EXIT_FAILED
    except Unreachable as error:
        _complain(program, error)
        return EXIT_CARRY_ON
    except (Stopped, KeyboardInterrupt):
        _complain(program, "stopped; run the same command to resume")
        return EXIT_CARRY_ON
    except BrokenPipeError:  # the reader of a pipe, e.g. head, has closed it
        discard(sys.stdout)
        return 0
    except OSError as error:  # a folder that cannot be written, a full disk
        where = f"{error.filename}: " if error.filename else ""
        _complain(program, f"{where}{error.strerror or error}")
        return EXIT_MISTAKE
