"""Pivot tables: a sweep's metrics by any of its axes, averaged over the other axes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import pandas as pd

from densevit.config.run_config import FIELDS
from densevit.results.collect.cells import as_written
from densevit.results.tables.format import (
    benchmarks_of,
    check_metric,
    known_metrics,
    metric_title,
    spread_text,
)
from densevit.results.tables.table import MISSING, NOT_APPLICABLE, TextTable
from densevit.sweep.cells import cell_values, value_text
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.console import count
from densevit.utils.errors import UserError, nearest

OTHER_AXES = ("benchmark", "metric", "seed")  # may be used like axes of the sweep


class _Result(NamedTuple):
    """A planned result, and its values on the requested axes."""

    run: Run
    benchmark: str
    metric: str
    values: tuple[Any, ...]


class _Entry(NamedTuple):
    """An entry of the pivot table.

    It is the mean over `cells` cells (on one benchmark each), which have `measured` of their
    `planned` results. `values` is per seed, averaged over the cells, if all have the same seeds.
    """

    cells: int
    planned: int
    measured: int
    mean: float
    values: Sequence[float]


def pivot(
    plan: Plan,
    frame: pd.DataFrame,
    rows: Sequence[str],
    cols: Sequence[str],
    metric: str = "top1",
) -> TextTable:
    """Return a table with a row for each value of `rows` and a column for each of `cols`.

    Both may name several of the sweep's axes, benchmark, metric and seed. With `metric` among them
    all metrics are shown, else `metric` alone; without benchmark, only the first test set, since a
    mean over clean sets, shifted ones and probes means nothing. An entry is the mean over its
    cells, each the mean over its seeds and of equal weight. ± is the standard deviation of that
    mean over seeds, if all cells have the same. A NaN result makes its entry NaN. A combination
    that the sweep does not plan is an en dash; a planned one without results is "missing".

    Errors: `UserError` for a name that is no axis or is given twice, and a metric that no run has.
    """
    _check_names(plan, rows, cols)
    names = [*rows, *cols]
    if "metric" not in names:
        check_metric(frame, metric)
    frame, only_set = _chosen(frame, names, metric)
    planned = _planned(plan, frame, names, metric)
    entries, orders = _entries(planned, frame, names), _orders(plan, frame, names, metric)
    # In the planned order of each axis, without combinations that never occur.
    keys = sorted(entries, key=lambda key: [o[v] for o, v in zip(orders, key, strict=True)])
    down = list(dict.fromkeys(key[: len(rows)] for key in keys))
    order = orders[len(rows) :]
    across = sorted(
        {key[len(rows) :] for key in keys},
        key=lambda key: [o[v] for o, v in zip(order, key, strict=True)],
    )
    values = _value_texts(planned, names)
    texts = [
        [*map(values.__getitem__, zip(rows, key, strict=True))]
        + [_entry_text(entries.get(key + other), _metric_of(names, key + other, metric, values))
           for other in across]
        for key in down
    ]  # fmt: skip
    heads = [_head(cols, key, values) or metric for key in across]
    return TextTable(
        _title(names, metric),
        [*rows, *heads],
        texts,
        _note(plan, only_set, names, entries.values(), texts),
        len(rows),
        data=_data(planned, rows, down, across, heads, entries),
    )


def _chosen(frame: pd.DataFrame, names: Sequence[str], metric: str) -> tuple[pd.DataFrame, str]:
    """Return the rows that the table is of, and their test set if that is one of several."""
    chosen = frame["metric"] != "ways" if "metric" in names else frame["metric"] == metric
    frame = frame[chosen]
    benchmarks = benchmarks_of(frame)
    if "benchmark" in names or len(benchmarks) == 1:
        return frame, ""
    return frame[frame["benchmark"] == benchmarks[0]], benchmarks[0]


def _check_names(plan: Plan, rows: Sequence[str], cols: Sequence[str]) -> None:
    valid = [*plan.axes, *OTHER_AXES]
    seen: set[str] = set()
    for flag, names in (("--rows", rows), ("--cols", cols)):
        for name in names:
            if name not in valid:
                why = "is the same in every cell" if name in FIELDS else "no axis of this sweep"
                raise UserError(f"{plan.spec.file}: {flag} {name}: {why}; {nearest(name, valid)}")
            if name in seen:
                raise UserError(f"{plan.spec.file}: {flag} {name}: is named twice")
            seen.add(name)
    if not seen:
        raise UserError(
            f"{plan.spec.file}: --rows, --cols: name at least one axis; {nearest('', valid)}"
        )


def _planned(plan: Plan, frame: pd.DataFrame, names: Sequence[str], metric: str) -> list[_Result]:
    """Return every result that the finished sweep has.

    The runs so far show which benchmark has which metrics.
    """
    pairs = list(dict.fromkeys(zip(frame["benchmark"], frame["metric"], strict=True)))
    pairs = pairs or [("val", metric)]
    found = []
    for run in plan.runs:
        values = cell_values(run.config, plan.axes) | {"seed": run.seed}
        for benchmark, measure in pairs:
            known = values | {"benchmark": benchmark, "metric": measure}
            found.append(_Result(run, benchmark, measure, tuple(known[name] for name in names)))
    return found


def _entries(
    planned: Sequence[_Result], frame: pd.DataFrame, names: Sequence[str]
) -> dict[tuple[str, ...], _Entry]:
    """Map key (the values as `_key` gives them) to entry, for every planned combination."""
    columns = (frame[name] for name in ("run", "benchmark", "metric", "value"))
    measured = {(run, b, m): value for run, b, m, value in zip(*columns, strict=True)}
    by_key: dict[tuple[str, ...], dict[tuple[str, str, str], dict[int, float | None]]] = {}
    for run, benchmark, measure, values in planned:
        cells = by_key.setdefault(tuple(map(_key, values)), {})
        seeds = cells.setdefault((run.cell, benchmark, measure), {})
        seeds[run.seed] = measured.get((run.id, benchmark, measure))
    return {key: _entry(list(cells.values()), "seed" in names) for key, cells in by_key.items()}


def _entry(cells: Sequence[dict[int, float | None]], one_seed: bool) -> _Entry:
    """Return the entry of some cells, each a dict of seed to value, None if it is missing."""
    found = [{s: v for s, v in seeds.items() if v is not None} for seeds in cells]
    measured = [seeds for seeds in found if seeds]
    planned, known = sum(map(len, cells)), sum(map(len, measured))
    if not measured:
        return _Entry(len(cells), planned, 0, math.nan, ())
    mean = sum(sum(seeds.values()) / len(seeds) for seeds in measured) / len(measured)
    values: list[float] = []
    if not one_seed and all(seeds.keys() == measured[0].keys() for seeds in measured):
        values = [sum(seeds[s] for seeds in measured) / len(measured) for s in measured[0]]
    return _Entry(len(cells), planned, known, mean, values)


def _key(value: Any) -> str:
    """Return a dictionary key that distinguishes values even if they read the same (1 and "1")."""
    return repr(value)


def _orders(
    plan: Plan, frame: pd.DataFrame, names: Sequence[str], metric: str
) -> list[dict[str, int]]:
    """Map keys to positions for each name: as in the sweep file, val before other benchmarks."""
    cells = [cell_values(run.config, plan.axes) for run in plan.grid.cells]
    known = known_metrics()
    measures = sorted(dict.fromkeys(frame["metric"]), key=lambda m: m not in known)
    given = {
        "seed": plan.spec.seeds,
        "benchmark": benchmarks_of(frame),
        "metric": measures or [metric],
        **{axis: [values[axis] for values in cells] for axis in plan.axes},
    }
    return [{v: i for i, v in enumerate(dict.fromkeys(map(_key, given[n])))} for n in names]


def _value_texts(planned: Sequence[_Result], names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Map (axis, key) to the value as text; to the key itself if two values read the same."""
    raw = {
        (name, _key(value)): value
        for result in planned
        for name, value in zip(names, result.values, strict=True)
    }
    texts = {axis_key: value_text(value) for axis_key, value in raw.items()}
    times = Counter((name, text) for (name, _), text in texts.items())
    return {
        (name, key): text if times[name, text] == 1 else key for (name, key), text in texts.items()
    }


def _head(cols: Sequence[str], key: tuple[str, ...], values: dict[tuple[str, str], str]) -> str:
    """Return a column header; a bare number says little without the name of its axis."""
    named = [(name, values[name, value]) for name, value in zip(cols, key, strict=True)]
    return " · ".join(
        text if name in ("benchmark", "metric") else f"{name} {text}" for name, text in named
    )


def _metric_of(
    names: Sequence[str], key: tuple[str, ...], metric: str, values: dict[tuple[str, str], str]
) -> str:
    return values["metric", key[names.index("metric")]] if "metric" in names else metric


def _entry_text(entry: _Entry | None, metric: str) -> str:
    if entry is None:
        return NOT_APPLICABLE
    if not entry.measured:
        return MISSING
    std = pd.Series(entry.values).std() if len(entry.values) > 1 else math.nan
    text = spread_text(entry.mean, std, len(entry.values), metric)
    if entry.measured == entry.planned:
        return text
    return f"{text} ({entry.measured} of {entry.planned})"


def _title(names: Sequence[str], metric: str) -> str:
    shown = "all metrics" if "metric" in names else metric_title(metric)
    return shown + ("" if "seed" in names else ", mean ± std over seeds")


def _note(
    plan: Plan,
    one_set: str,
    names: Sequence[str],
    entries: Collection[_Entry],
    texts: Sequence[Sequence[str]],
) -> str:
    """Return the note: the test set if there are others, the axes averaged over, how many results,
    and the meaning of the signs."""
    sentences = [f"On {one_set}; name benchmark for all test sets."] if one_set else []
    left = [axis for axis in plan.axes if axis not in names]
    counts = sorted({entry.cells for entry in entries})
    if left:
        sentences.append(f"Averaged over {', '.join(left)}: {_span(counts)} per entry.")
    if len(counts) > 1:
        sentences.append("Entries of different counts average over different settings.")
    if any(0 < entry.measured < entry.planned for entry in entries):
        sentences.append("(1 of 2): the mean of 1 result; 2 are planned.")
    if any(NOT_APPLICABLE in row for row in texts):
        sentences.append(f"{NOT_APPLICABLE}: does not apply, or is not part of the sweep.")
    return " ".join(sentences)


def _span(counts: Sequence[int]) -> str:
    """Return `1 cell` or `2 to 4 cells`."""
    low, high = counts[0], counts[-1]
    return count(low, "cell") if low == high else f"{low} to {high} cells"


def _data(
    planned: Sequence[_Result],
    rows: Sequence[str],
    down: Sequence[tuple[str, ...]],
    across: Sequence[tuple[str, ...]],
    heads: Sequence[str],
    entries: dict[tuple[str, ...], _Entry],
) -> pd.DataFrame:
    """Return the means in the same arrangement, at full precision."""
    raw = {(i, _key(v)): v for result in planned for i, v in enumerate(result.values)}
    columns = [as_written(raw[i, key[i]] for key in down) for i in range(len(rows))]
    columns += [
        pd.Series([entries[k].mean if (k := key + other) in entries else math.nan for key in down])
        for other in across
    ]
    data = pd.concat(columns, axis=1)
    data.columns = [*rows, *heads]
    return data
