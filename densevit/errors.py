"""What ends a command early: each is one line for the user and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_CARRY_ON = 75  # EX_TEMPFAIL of sysexits.h: start the same command again to carry on


class UserError(Exception):
    """A mistake that the user can mend; the commands print it as one line and exit with 2."""


class RunError(Exception):
    """A run that cannot go on, and why, in one line; exit code 1."""


class Diverged(RunError):
    """A run whose numbers are not finite any more."""


class Unreachable(Exception):
    """A service that is needed does not answer; the same command later carries on. Exit code 75."""


class Stopped(Exception):
    """The run was asked to stop and has stopped; it can be carried on. Exit code 75."""


class StoppedNow(Stopped):
    """The run was asked twice, and stopped in the middle of a step: there is nothing to keep."""


def nearest(name: object, valid: Iterable[str]) -> str:
    """Words that point from a wrong name to the right one: the nearest, or else all of them."""
    names = sorted({str(v) for v in valid})
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"valid: {shown}" if names else "none is valid"
