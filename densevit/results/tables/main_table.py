"""The main table of a sweep: one metric by cell and benchmark.

`CellTable` holds the numbers, which figures use too. `cell_table_text` makes a `TextTable` of it,
which `table` and `latex` write as Markdown, CSV, LaTeX or for the terminal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from densevit.results.collect.cells import as_given, as_written, over_seeds
from densevit.results.tables.format import (
    benchmarks_of,
    interval_text,
    metric_title,
    shared_classes,
    spread_text,
)
from densevit.results.tables.table import DAGGER, MISSING, Mark, TextTable
from densevit.sweep.cells import cell_values, short_texts, value_text
from densevit.sweep.plan import Plan


@dataclass(frozen=True)
class CellTable:
    """Values of one metric, one row per cell in the plan's order, with or without results.

    `data` has the columns cell (id), label, one for each of `axes` (the raw value, None where the
    axis does not apply), seeds (planned), n (seeds with results), and for each of `benchmarks`
    `<benchmark>_mean`, `_std` (n-1 in the denominator; NaN for one seed) and `_n`. A seed whose
    value is NaN makes mean and std NaN: it is not dropped. With `intervals` there are also `_low`
    and `_high`, the 95 % t interval of the mean over seeds (`seeds.summary`). `shared` is
    `shared_classes` of the benchmarks, `named` is `Plan.named`.
    """

    metric: str
    axes: tuple[str, ...]
    benchmarks: tuple[str, ...]
    data: pd.DataFrame
    intervals: bool = False
    shared: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    named: Callable[[str], str] = str


def cell_table(
    plan: Plan,
    frame: pd.DataFrame,
    metric: str = "top1",
    *,
    intervals: bool = False,
    only: Collection[str] | None = None,
) -> CellTable:
    """Aggregate the result of `collect` over the seeds of each cell, or of the cells in `only`."""
    chosen = frame[frame["metric"] == metric]
    benchmarks = benchmarks_of(chosen)
    included = set(only) if only is not None else {run.cell for run in plan.grid.cells}
    chosen = chosen[chosen["cell"].isin(included)]
    found = {key[:2]: row for key, *row in over_seeds(chosen).itertuples()}
    bounds = _bounds(chosen) if intervals else {}
    seeds = frame.groupby("cell")["run"].nunique()
    stopped = _stopped(plan)
    rows = []
    for run in plan.grid.cells:
        if run.cell not in included:
            continue
        row: dict[str, Any] = {"cell": run.cell, "label": plan.label(run)}
        row |= cell_values(run.config, plan.axes)
        row |= {"seeds": len(plan.spec.seeds), "n": int(seeds.get(run.cell, 0))}
        row |= {} if stopped is None else {"stopped": stopped[run.cell]}
        for name in benchmarks:
            mean, std, n = found.get((run.cell, name), (math.nan, math.nan, 0))
            row |= {f"{name}_mean": mean, f"{name}_std": std, f"{name}_n": int(n)}
            if intervals:
                low, high = bounds.get((run.cell, name), (math.nan, math.nan))
                row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    data = pd.DataFrame(rows)
    for axis in plan.axes:
        data[axis] = as_given(row[axis] for row in rows)
    shared = shared_classes(frame)
    return CellTable(metric, plan.axes, benchmarks, data, intervals, shared, plan.named)


def _stopped(plan: Plan) -> Counter[str] | None:
    """Return the number of runs of each cell that `early_stop` ended; None without such a rule."""
    if plan.spec.early_stop is None:
        return None
    states = ((run.cell, plan.run_folder(run).readable_status().state) for run in plan.runs)
    return Counter(cell for cell, state in states if state == "stopped")


def _bounds(chosen: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float]]:
    from densevit.results.stats.seeds import summary

    found = summary(chosen)
    return {(row.cell, row.benchmark): (row.low, row.high) for row in found.itertuples()}


def cell_table_text(
    table: CellTable, marks: Mapping[tuple[str, str], Mark] | None = None, note: str = ""
) -> TextTable:
    """Return the table as text; `marks`, by (cell id, benchmark), are those of
    `best_cells.best_marks`. The note explains them."""
    head, rows = to_text(table)
    marks = marks or {}
    first = len(head) - len(table.benchmarks)
    placed = {
        (i, first + j): marks[cell, name]
        for i, cell in enumerate(table.data["cell"])
        for j, name in enumerate(table.benchmarks)
        if (cell, name) in marks
    }
    spread = "mean [95 % interval]" if table.intervals else "mean ± std"
    title = f"{metric_title(table.metric)}, {spread} over seeds"
    legend = (text for mark, text in _MARK_LEGEND.items() if mark in placed.values())
    note = " ".join([*([note] if note else []), *legend])
    return TextTable(title, head, rows, note, len(table.axes) or 1, placed, data=_data(table))


def to_text(table: CellTable) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows as text: the axes (or the cell's label), seeds, benchmarks."""
    names = [
        f"{name} ({' of '.join(map(str, table.shared[name]))} classes)"
        if name in table.shared
        else name
        for name in table.benchmarks
    ]
    head = [*(table.axes or ("cell",)), "seeds", *names]
    rows = []
    short = {axis: short_texts(table.data[axis]) for axis in table.axes}
    for row in table.data.to_dict("records"):
        axes = [_axis_text(row[axis], short[axis], table) for axis in table.axes] or [row["label"]]
        numbers = [_number_text(row, name, table) for name in table.benchmarks]
        ended = f" ({row['stopped']} stopped)" if row.get("stopped") else ""
        rows.append([*axes, f"{row['n']}/{row['seeds']}{ended}", *numbers])
    return head, rows


def _axis_text(value: Any, short: Mapping[str, str], table: CellTable) -> str:
    """Return what the sweep calls a value of an axis, else its short text."""
    text = value_text(value)
    return named if (named := table.named(text)) != text else short[text]


_MARK_LEGEND: dict[Mark, str] = {
    "best": "Bold: better than every other cell of the column by an established difference "
    "(paired by seed, p < 0.05 after Holm's correction for all pairs in all columns).",
    "tied": f"{DAGGER}: the best mean of its column, and cells not told apart from it; others are "
    "worse by an established difference (paired by seed, Holm's correction for all pairs in all "
    "columns).",
}


def _data(table: CellTable) -> pd.DataFrame:
    return table.data.assign(**{axis: as_written(table.data[axis]) for axis in table.axes})


def _number_text(row: dict[str, Any], benchmark: str, table: CellTable) -> str:
    """Return `71.2 ± 0.8` or `71.2 [70.1, 72.3]`, with its n if that differs from the row's."""
    mean, std, n = (row[f"{benchmark}_{part}"] for part in ("mean", "std", "n"))
    if n == 0:
        return MISSING
    if table.intervals:
        low, high = row[f"{benchmark}_low"], row[f"{benchmark}_high"]
        text = interval_text(mean, low, high, table.metric)
    else:
        text = spread_text(mean, std, n, table.metric)
    return text if n == row["n"] else f"{text} (n={n})"
