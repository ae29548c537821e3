"""Tables for the terminal that `plan` and `status` share."""

from __future__ import annotations

from rich.table import Table

from densevit.sweep.plan import Plan

LISTED = 60  # the most runs or cells that get a line each
SHOWN = 20  # the most lines of a larger sweep: running runs, values of an axis, failures
STYLES = {"failed": "red", "lost": "red", "running": "bold", "unknown": "yellow"}


def axes_table(plan: Plan, first: str, *last: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (first, *plan.axes, *last):
        table.add_column(name, no_wrap=name == first, overflow="fold")
    return table
