"""A sweep's numbers by any of its axes; what is neither a row nor a column is averaged over."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import pandas as pd

from densevit.config import FIELDS
from densevit.errors import UserError, nearest
from densevit.results.sheet import MISSING, NOT_APPLICABLE, Sheet
from densevit.results.tables import (
    METRICS,
    as_written,
    benchmarks_of,
    check_metric,
    metric_title,
    spread_text,
)
from densevit.sweep.grid import Run, cell_values, value_word
from densevit.sweep.plan import Plan

BESIDE = ("benchmark", "metric", "seed")  # may be named like the sweep's axes


class _Result(NamedTuple):
    """A number that the finished sweep has, and its raw values of the names that are asked for."""

    run: Run
    benchmark: str
    metric: str
    values: tuple[Any, ...]


class _Entry(NamedTuple):
    """What stands where a row meets a column.

    It is the mean over `cells` cells (on one benchmark each), of whose `planned` results `measured`
    are there. `values` are of the seeds, each averaged over the cells, where all have the same.
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
) -> Sheet:
    """A row for each value of `rows`, a column for each of `cols`; both may name several axes.

    Names are the sweep's axes, benchmark, metric and seed. With `metric` among them all metrics are
    shown, else `metric` alone. An entry is the mean over the cells that fall into it (on each
    benchmark, if that is no name), each its mean over seeds and counting alike; ± is the standard
    deviation over seeds of that mean, where all cells have the same seeds. A result that is not a
    number makes its entry NaN. Combinations that the sweep does not plan are an en dash, and those
    planned of which nothing is there are missing.

    Errors: `UserError` for a name that is no axis, or named twice, and a metric that no run has.
    """
    _check_names(plan, rows, cols)
    names = [*rows, *cols]
    if "metric" not in names:
        check_metric(frame, metric)
    wanted = frame["metric"] != "ways" if "metric" in names else frame["metric"] == metric
    frame = frame[wanted]
    planned = _planned(plan, frame, names, metric)
    entries, orders = _entries(planned, frame, names), _orders(plan, frame, names, metric)
    # As planned, in the order of each axis, and without what never occurs.
    keys = sorted(entries, key=lambda key: [o[v] for o, v in zip(orders, key, strict=True)])
    down = list(dict.fromkeys(key[: len(rows)] for key in keys))
    order = orders[len(rows) :]
    across = sorted(
        {key[len(rows) :] for key in keys},
        key=lambda key: [o[v] for o, v in zip(order, key, strict=True)],
    )
    words = _words(planned, names)
    texts = [
        [*map(words.__getitem__, zip(rows, key, strict=True))]
        + [_text(entries.get(key + other), _metric_of(names, key + other, metric, words))
           for other in across]
        for key in down
    ]  # fmt: skip
    heads = [
        " · ".join(_headed(name, words[name, v]) for name, v in zip(cols, key, strict=True))
        or metric
        for key in across
    ]
    return Sheet(
        _title(names, metric),
        [*rows, *heads],
        texts,
        _note(plan, frame, names, entries.values(), texts),
        len(rows),
        data=_data(planned, rows, down, across, heads, entries),
    )


def _check_names(plan: Plan, rows: Sequence[str], cols: Sequence[str]) -> None:
    valid = [*plan.axes, *BESIDE]
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
        raise UserError(f"{plan.spec.file}: --rows, --cols: name an axis; {nearest('', valid)}")


def _planned(plan: Plan, frame: pd.DataFrame, names: Sequence[str], metric: str) -> list[_Result]:
    """Every result that the finished sweep has.

    Which benchmark has which metric is known from the runs that are there.
    """
    pairs = list(dict.fromkeys(zip(frame["benchmark"], frame["metric"], strict=True)))
    pairs = pairs or [("val", metric)]
    found = []
    for run in plan.runs:
        values = cell_values(run.config, plan.axes) | {"seed": run.seed}
        for benchmark, measure in pairs:
            beside = values | {"benchmark": benchmark, "metric": measure}
            found.append(_Result(run, benchmark, measure, tuple(beside[name] for name in names)))
    return found


def _entries(
    planned: Sequence[_Result], frame: pd.DataFrame, names: Sequence[str]
) -> dict[tuple[str, ...], _Entry]:
    """Key (of the values as `_key` gives them) to entry, for every combination that is planned."""
    columns = (frame[name] for name in ("run", "benchmark", "metric", "value"))
    held = {(run, b, m): value for run, b, m, value in zip(*columns, strict=True)}
    by_key: dict[tuple[str, ...], dict[tuple[str, str, str], dict[int, float | None]]] = {}
    for run, benchmark, measure, values in planned:
        cells = by_key.setdefault(tuple(map(_key, values)), {})
        seeds = cells.setdefault((run.cell, benchmark, measure), {})
        seeds[run.seed] = held.get((run.id, benchmark, measure))
    return {key: _entry(list(cells.values()), "seed" in names) for key, cells in by_key.items()}


def _entry(cells: Sequence[dict[int, float | None]], seed_named: bool) -> _Entry:
    """From each cell's value by seed, None where it is not there."""
    found = [{s: v for s, v in seeds.items() if v is not None} for seeds in cells]
    there = [seeds for seeds in found if seeds]
    planned, measured = sum(map(len, cells)), sum(map(len, there))
    if not there:
        return _Entry(len(cells), planned, 0, math.nan, ())
    mean = sum(sum(seeds.values()) / len(seeds) for seeds in there) / len(there)
    values: list[float] = []
    if not seed_named and all(seeds.keys() == there[0].keys() for seeds in there):
        values = [sum(seeds[s] for seeds in there) / len(there) for s in there[0]]
    return _Entry(len(cells), planned, measured, mean, values)


def _key(value: Any) -> str:
    """Values apart that are not the same, though a person may read the same: a dictionary's key."""
    return repr(value)


def _orders(
    plan: Plan, frame: pd.DataFrame, names: Sequence[str], metric: str
) -> list[dict[str, int]]:
    """For each name, key to place: as in the sweep file, and val before other benchmarks."""
    cells = [cell_values(run.config, plan.axes) for run in plan.grid.cells]
    measures = sorted(dict.fromkeys(frame["metric"]), key=lambda m: m not in METRICS)
    given = {
        "seed": plan.spec.seeds,
        "benchmark": benchmarks_of(frame),
        "metric": measures or [metric],
        **{axis: [values[axis] for values in cells] for axis in plan.axes},
    }
    return [{v: i for i, v in enumerate(dict.fromkeys(map(_key, given[n])))} for n in names]


def _words(planned: Sequence[_Result], names: Sequence[str]) -> dict[tuple[str, str], str]:
    """(name, key) to what a person reads; the number itself where two would read the same."""
    raw = {
        (name, _key(value)): value
        for result in planned
        for name, value in zip(names, result.values, strict=True)
    }
    words = {place: value_word(value) for place, value in raw.items()}
    count: dict[tuple[str, str], int] = {}
    for (name, _), word in words.items():
        count[name, word] = count.get((name, word), 0) + 1
    return {
        place: word if count[place[0], word] == 1 else place[1] for place, word in words.items()
    }


def _headed(name: str, word: str) -> str:
    """A column's value; a bare number says little without its name."""
    return word if name in ("benchmark", "metric") else f"{name} {word}"


def _metric_of(
    names: Sequence[str], key: tuple[str, ...], metric: str, words: dict[tuple[str, str], str]
) -> str:
    return words["metric", key[names.index("metric")]] if "metric" in names else metric


def _text(entry: _Entry | None, metric: str) -> str:
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
    what = "all metrics" if "metric" in names else metric_title(metric)
    spread = "" if "seed" in names else ", mean ± std over seeds"
    return f"{what}{spread}"


def _note(
    plan: Plan,
    frame: pd.DataFrame,
    names: Sequence[str],
    entries: Collection[_Entry],
    texts: Sequence[Sequence[str]],
) -> str:
    """What was averaged over, over how many results, and what the signs mean."""
    told = []
    left = [axis for axis in plan.axes if axis not in names]
    benchmarks = benchmarks_of(frame)
    if "benchmark" not in names and len(benchmarks) > 1:
        left.append(f"benchmark ({', '.join(benchmarks)})")
    counts = sorted({entry.cells for entry in entries})
    if left:
        told.append(f"Averaged over {', '.join(left)}: {_span(counts, left)} an entry.")
    if len(counts) > 1:
        told.append("Entries of different numbers are averages over different settings.")
    if any(0 < entry.measured < entry.planned for entry in entries):
        told.append("(1 of 2): so many of the planned results are there; it is the mean of those.")
    if any(NOT_APPLICABLE in row for row in texts):
        told.append(f"{NOT_APPLICABLE}: does not apply, or is not part of the sweep.")
    return " ".join(told)


def _span(counts: Sequence[int], left: Sequence[str]) -> str:
    """`1 cell`, `2 to 4 cells`; a cell on several benchmarks is several means"""
    low, high = counts[0], counts[-1]
    noun = "mean" if left[-1].startswith("benchmark (") else "cell"
    return f"{low} {noun}" + "s" * (low > 1) if low == high else f"{low} to {high} {noun}s"


def _data(
    planned: Sequence[_Result],
    rows: Sequence[str],
    down: Sequence[tuple[str, ...]],
    across: Sequence[tuple[str, ...]],
    heads: Sequence[str],
    entries: dict[tuple[str, ...], _Entry],
) -> pd.DataFrame:
    """The means in the same arrangement, at full precision."""
    raw = {(i, _key(v)): v for result in planned for i, v in enumerate(result.values)}
    columns = [as_written(raw[i, key[i]] for key in down) for i in range(len(rows))]
    columns += [
        pd.Series([entries[k].mean if (k := key + other) in entries else math.nan for key in down])
        for other in across
    ]
    data = pd.concat(columns, axis=1)
    data.columns = [*rows, *heads]
    return data
