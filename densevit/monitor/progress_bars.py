"""Show the progress of a sweep: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from densevit.launch.foreground import Progress, Watch
from densevit.runs.status import Status
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.escape import visible
from densevit.utils.files import last_lines

LOG_LINES = 10


@contextmanager
def watching(plan: Plan, total: int, console: Console) -> Iterator[Watch]:
    """Yield a callback for the launcher that shows the runs, their epochs and how they end."""
    lines = _Lines(plan, console)
    if not console.is_terminal:
        yield lines.print_changes
        return
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        console=console,
    )
    with bars:
        overall = bars.add_task(plan.name, total=total, unit="runs")
        tasks: dict[str, TaskID] = {}

        def watch(progress: Progress) -> None:
            lines.print_changes(progress)
            bars.update(overall, completed=len(progress.ended))
            running = [*progress.active, *progress.elsewhere]
            for run in running:
                if run.id not in tasks:
                    total = run.config.epochs
                    tasks[run.id] = bars.add_task(lines.title(run), total=total, unit="epochs")
                _advance(bars, tasks[run.id], plan.run_folder(run).status())
            for ended in tasks.keys() - {run.id for run in running}:
                bars.remove_task(tasks.pop(ended))

        yield watch


class _Lines:
    """Prints a line once for each run that starts or ends."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self.plan, self.console = plan, console
        self.started: set[str] = set()
        self.ended: set[str] = set()

    def title(self, run: Run) -> str:
        return visible(f"{self.plan.label(run)}, seed {run.seed}")

    def print_changes(self, progress: Progress) -> None:
        for run in progress.active:
            if run.id not in self.started:
                self.started.add(run.id)
                self.console.print(f"{run.id}  started   {self.title(run)}", highlight=False)
        for run in progress.ended:
            if run.id not in self.ended:
                self.ended.add(run.id)
                self._print_end(run)

    def _print_end(self, run: Run) -> None:
        folder = self.plan.run_folder(run)
        if not folder.path.exists():
            gone = f"{run.id}  failed    {self.title(run)}: {folder.path} was removed meanwhile"
            self.console.print(gone, style="red", markup=False, highlight=False)
            return
        status = folder.status()
        line = f"{run.id}  {status.state:<9} {self.title(run)}"
        if status.state != "failed":
            self.console.print(line, highlight=False)
            return
        self.console.print(f"{line}: {status.message}", style="red", markup=False, highlight=False)
        for text in last_lines(folder.log_file, LOG_LINES):
            self.console.print(f"    {text}", markup=False, highlight=False)
        self.console.print(f"    ({folder.log_file})", markup=False, highlight=False)


def _advance(bars: Bars, task: TaskID, status: Status) -> None:
    if status.steps:
        # Steps move the bar; the count beside it is in epochs.
        bars.update(
            task, total=status.epochs, completed=status.step * status.epochs // status.steps
        )
