"""Print lines, tables, counts and durations to the terminal.

All output goes through `say`, `warn`, `console_for_tables` or `LogFormatter`: a terminal obeys
none of the characters of names, messages and logs (`utils.escape`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from densevit.utils.escape import visible


def say(text: object, end: str = "\n") -> None:
    """Print a line to stdout, at once."""
    print(visible(str(text)), end=end, flush=True)


def warn(text: object) -> None:
    """Print a line to stderr, at once."""
    print(visible(str(text)), file=sys.stderr, flush=True)


class LogFormatter(logging.Formatter):
    """Formats the lines of a log like `say`."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _Console(Console):
    """A console that leaves a closed pipe to `utils.errors.exit_code`, and prints like `say`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


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
