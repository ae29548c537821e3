"""The table of a sweep: a row a cell, a column a benchmark, mean and spread over the seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from densevit.sweep.grid import cell_values, value_word
from densevit.sweep.plan import Plan

# How each metric is called and with how many decimals it is shown.
METRICS = {
    "top1": ("top-1 accuracy (%)", 1),
    "top5": ("top-5 accuracy (%)", 1),
    "nll": ("NLL", 3),
    "miou": ("mIoU (%)", 1),
    "matched_clean": ("clean top-1 accuracy in the same mix of classes (%)", 1),
}
MISSING = "missing"


@dataclass(frozen=True)
class CellTable:
    """Numbers of one metric, a row a cell in the plan's order, whether it has results or not.

    `data` has the columns cell (id), label (words), one for each of `axes` (the raw value, None
    where the axis does not apply), seeds (planned), n (seeds with results), and for each of
    `benchmarks` `<benchmark>_mean`, `_std` (n-1 in the denominator; NaN for one seed) and `_n`.
    A seed whose value is NaN makes mean and std NaN: it is not dropped.
    """

    metric: str
    axes: tuple[str, ...]
    benchmarks: tuple[str, ...]
    data: pd.DataFrame


def cell_table(plan: Plan, frame: pd.DataFrame, metric: str = "top1") -> CellTable:
    """Summarise what `collect` gave over the seeds of each cell."""
    chosen = frame[frame["metric"] == metric]
    benchmarks = _benchmarks(chosen)
    groups = chosen.groupby(["cell", "benchmark"], sort=False)["value"]
    numbers = groups.agg(["mean", "std", "size", "count"])
    # pandas leaves NaN out of a mean; a diverged seed must not vanish from its cell like that.
    numbers.loc[numbers["size"] != numbers["count"], ["mean", "std"]] = math.nan
    found = {key: row for key, *row in numbers[["mean", "std", "size"]].itertuples()}
    seeds = frame.groupby("cell")["run"].nunique()
    rows = []
    for run in plan.grid.cells:
        row: dict[str, Any] = {"cell": run.cell, "label": plan.label(run)}
        row |= cell_values(run.config, plan.axes)
        row |= {"seeds": len(plan.spec.seeds), "n": int(seeds.get(run.cell, 0))}
        for name in benchmarks:
            mean, std, n = found.get((run.cell, name), (math.nan, math.nan, 0))
            row |= {f"{name}_mean": mean, f"{name}_std": std, f"{name}_n": int(n)}
        rows.append(row)
    data = pd.DataFrame(rows)
    for axis in plan.axes:
        data[axis] = _as_given(row[axis] for row in rows)
    return CellTable(metric, plan.axes, benchmarks, data)


def to_text(table: CellTable) -> tuple[list[str], list[list[str]]]:
    """The head and the rows as text: the axes (or the cell's label), seeds, the benchmarks."""
    head = [*(table.axes or ("cell",)), "seeds", *table.benchmarks]
    rows = []
    for row in table.data.to_dict("records"):
        axes = [value_word(row[axis]) or "{}" for axis in table.axes] or [row["label"]]
        numbers = [_number_text(row, name, table.metric) for name in table.benchmarks]
        rows.append([*axes, f"{row['n']}/{row['seeds']}", *numbers])
    return head, rows


def to_markdown(table: CellTable) -> str:
    """A Markdown table with aligned columns, ending in a line break."""
    head, rows = to_text(table)
    cells = [[_escaped(text) for text in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    first_number = len(table.axes) or 1
    rules = [
        "-" * width if i < first_number else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |"
        for row in [cells[0], rules, *cells[1:]]
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: CellTable) -> str:
    """The numbers with full precision; a mapping on an axis is JSON, nothing is an empty field."""
    data = table.data.copy()
    for axis in table.axes:
        data[axis] = _as_given(json.dumps(v) if isinstance(v, dict) else v for v in data[axis])
    return data.to_csv(index=False, lineterminator="\n")


def to_rich(table: CellTable) -> Table:
    """The table for a terminal."""
    head, rows = to_text(table)
    shown = Table(title=METRICS[table.metric][0] + ", mean ± std over seeds", title_justify="left")
    first_number = len(table.axes) or 1
    for i, name in enumerate(head):
        shown.add_column(Text(name), justify="left" if i < first_number else "right")
    for row in rows:
        shown.add_row(*(Text(text, style="dim" if text == MISSING else "") for text in row))
    return shown


def _benchmarks(chosen: pd.DataFrame) -> tuple[str, ...]:
    """Those that have the metric, val before the others; val, too, as long as there are none."""
    names = list(dict.fromkeys(chosen["benchmark"])) or ["val"]
    return tuple(sorted(names, key=lambda name: name != "val"))


def _as_given(values: Iterable[Any]) -> pd.Series:
    """A column in which whole numbers stay whole beside a None."""
    return pd.Series(list(values), dtype=object)


def _number_text(row: dict[str, Any], benchmark: str, metric: str) -> str:
    """`71.2 ± 0.8`, with its own n where that is not the row's."""
    mean, std, n = (row[f"{benchmark}_{part}"] for part in ("mean", "std", "n"))
    if n == 0:
        return MISSING
    decimals = METRICS[metric][1]
    text = f"{mean:.{decimals}f}"
    if n > 1:
        text += f" ± {std:.{decimals}f}"
    return text if n == row["n"] else f"{text} (n={n})"


def _escaped(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
