"""Print lines, tables, counts and durations to the terminal."""

from __future__ import annotations

import sys

from rich.console import Console


def say(text: str) -> None:
    """Print a line without markup, highlighting or wrapping."""
    console_for_tables().print(text, highlight=False, soft_wrap=True)


class _Console(Console):
    """A console that leaves a closed pipe to `utils.errors.exit_code`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console_for_tables() -> Console:
    """Return a console that does not narrow tables to 80 columns in a file or pipe."""
    # No markup: names and descriptions come from the user and may contain brackets.
    return _Console(markup=False, width=None if sys.stdout.isatty() else 200)


def count(number: int, noun: str) -> str:
    """Return `1 seed` or `2 seeds`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """Format seconds as `2 d 3 h`, `3 h 05 min` or `4:05 min`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d} min"
