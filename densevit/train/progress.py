"""Progress of a run: a bar on a terminal, or periodic lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from densevit.utils.console import LogFormatter

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("densevit")
LOG_SECONDS = 30.0
_console: Console | None = None  # of `showing`, on a terminal

# Called after each logged line of metrics with the step, the total steps, and `summary`.
Progress = Callable[[int, int, str], None]


@contextmanager
def showing() -> Iterator[None]:
    """Log to stderr; on a terminal, let `progress` draw a bar below the log."""
    global _console
    if not sys.stderr.isatty():
        lines = logging.StreamHandler()
        lines.setFormatter(LogFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logging.basicConfig(level=logging.INFO, handlers=[lines])
        yield
        return
    from rich.console import Console
    from rich.logging import RichHandler

    _console = Console(stderr=True)
    handler = RichHandler(console=_console, show_path=False, show_level=False, highlighter=None,
                          log_time_format="%H:%M:%S", omit_repeated_times=False)  # fmt: skip
    handler.setFormatter(LogFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        yield
    finally:
        _console = None


@contextmanager
def progress() -> Iterator[Progress]:
    """Show training progress on the terminal of `showing`, else in the log."""
    if _console is None:
        yield _Lines()
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("step"), bars.MofNCompleteColumn(), bars.BarColumn(None),
        bars.TextColumn("{task.description}"),
    )  # fmt: skip
    with bars.Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task("")

        def show(step: int, steps: int, text: str) -> None:
            bar.update(task, completed=step, total=steps, description=text)

        yield show


class _Lines:
    """Progress as a log line, at most every LOG_SECONDS."""

    def __init__(self) -> None:
        self.logged = time.monotonic()

    def __call__(self, step: int, steps: int, text: str) -> None:
        if time.monotonic() - self.logged >= LOG_SECONDS:
            self.logged = time.monotonic()
            log.info("step %d of %d: %s", step, steps, text)


def summary(line: dict[str, float], seconds_left: float) -> str:
    """Format a line of metrics for display: speed, loss, accuracy and remaining time."""
    parts = [f"{line['train/images_per_second']:,.0f} images/s"]
    if "train/loss" in line:
        parts.append(f"loss {line['train/loss']:.3f}")
    if "train/top1" in line:
        parts.append(f"top-1 {line['train/top1']:.1f} %")
    hours, rest = divmod(int(seconds_left), 3600)
    left = f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60}:{rest % 60:02d} min"
    return ", ".join([*parts, f"{left} left"])
