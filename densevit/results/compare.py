"""Two cells of a sweep, or two runs, side by side: settings, accuracy, costs and health."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from densevit.config import SCIENCE, RunConfig, identity
from densevit.errors import UserError
from densevit.metricsfile import finite, number
from densevit.predictions import Answers, read_answers
from densevit.results.collect import collect, costs
from densevit.results.sheet import MISSING, NOT_APPLICABLE, Sheet
from densevit.results.tables import (
    benchmarks_of,
    check_metric,
    interval_text,
    metric_title,
    p_text,
    short,
    spread_text,
)
from densevit.rundir import RunFolder, read_json, read_metrics
from densevit.sweep.grid import Run, cell_values, value_word
from densevit.sweep.plan import Plan

_GIB = 1 / 1024
HEALTH = "health/"


@dataclass(frozen=True)
class Comparison:
    """`lines` say what A and B are. A sheet is None where there is nothing to show."""

    lines: Sequence[str]
    settings: Sheet | None
    numbers: Sheet
    beside: Sheet | None


class _Row(NamedTuple):
    """One benchmark: what A and B reached, their difference and what to think of it."""

    benchmark: str
    ours: str
    theirs: str
    difference: str
    verdict: str


def compare_cells(
    plan: Plan, a: Run, b: Run, metric: str = "top1", wanted: float = 1.0
) -> Comparison:
    """Two cells of a sweep, with differences A − B paired by seed (`stats.differences`, with Holm's
    correction over the benchmarks). `wanted`: the smallest difference that matters.

    Errors: `UserError` for one and the same cell, and a metric that no run has.
    """
    if a.cell == b.cell:
        raise UserError(f"{plan.label(a)}: A and B are the same cell, {a.cell}")
    frame = collect(plan)
    check_metric(frame, metric)
    pair = (a.cell, b.cell)
    frame = frame[frame["cell"].isin(pair)]
    found = [frame.loc[frame["cell"] == cell, "run"].nunique() for cell in pair]
    lines = [
        f"{letter}  {plan.label(run)} (cell {run.cell}, {n} of {len(plan.spec.seeds)} seeds)"
        for letter, run, n in zip("AB", (a, b), found, strict=True)
    ]
    rows, note = _over_seeds(frame[frame["metric"] == metric], *pair, metric, wanted)
    return Comparison(
        lines,
        _settings(a.config, b.config, tuple(SCIENCE)),
        _numbers(rows, metric, note),
        _beside(
            _costs(plan, pair),
            [_health_of_cell(plan, cell) for cell in pair],
            "Means over the seeds that have trained; health as it was measured last.",
        ),
    )


def compare_runs(
    a: RunFolder, b: RunFolder, metric: str = "top1", wanted: float = 1.0
) -> Comparison:
    """Two single runs, with the interval of A − B over the pictures (`samples.difference`), where
    both have kept what they answered to the same ones.

    Errors: `UserError` for one and the same run, and for a run without results.
    """
    if a.path.resolve() == b.path.resolve():
        raise UserError(f"{a.path.name}: A and B are the same run")
    configs = [folder.config() for folder in (a, b)]
    results = [_results(folder) for folder in (a, b)]
    lines = [
        f"{letter}  {folder.path.name} (cell {identity(config).cell}, seed {config.seed})"
        for letter, folder, config in zip("AB", (a, b), configs, strict=True)
    ]
    check_metric(_metrics_of(results), metric)
    names = [name for held in results for name, numbers in held.items() if metric in numbers]
    rows = [
        _over_pictures((a, b), results, name, metric, wanted)
        for name in sorted(dict.fromkeys(names), key=lambda name: name != "val")
    ]
    note = "One run each: whether other seeds would differ as much is not said. " + (
        "Brackets: 95 % interval over the pictures (bootstrap)."
        if any("[" in row.difference for row in rows)
        else "No interval, as they have not kept answers to the same pictures."
        if metric == "top1"
        else "No interval: there is one of top1 alone."
    )
    return Comparison(
        lines,
        _settings(*configs, (*SCIENCE, "seed")),
        _numbers(rows, metric, note),
        _beside(
            [_costs_of_run(folder) for folder in (a, b)],
            [_health(f) for f in (a, b)],
            "Health as it was measured last.",
        ),
    )


def _settings(a: RunConfig, b: RunConfig, names: tuple[str, ...]) -> Sheet | None:
    """What differs where it applies to both; what only one of them has at all is named below."""
    ours, theirs = cell_values(a, names), cell_values(b, names)
    rows = [
        [name, value_word(ours[name]), value_word(theirs[name])]
        for name in names
        if None not in (ours[name], theirs[name]) and ours[name] != theirs[name]
    ]
    alone = [
        f"Only of {letter}: "
        + ", ".join(f"{n} {value_word(have[n])}" for n in names if n in extra)
        + "."
        for letter, have, lacks in (("A", ours, theirs), ("B", theirs, ours))
        if (extra := {n for n in names if have[n] is not None and lacks[n] is None})
    ]
    title, head = "What differs in the settings", ["setting", "A", "B"]
    return Sheet(title, head, rows, " ".join(alone), 3) if rows or alone else None


def _numbers(rows: Sequence[_Row], metric: str, note: str) -> Sheet:
    head = ["benchmark", "A", "B", "A − B", "verdict"]
    texts = [list(row) for row in rows]
    return Sheet(metric_title(metric), head, texts, note if rows else "Nothing is measured yet.")


def _over_seeds(
    chosen: pd.DataFrame, a: str, b: str, metric: str, wanted: float
) -> tuple[list[_Row], str]:
    """A row a benchmark, and the note."""
    from densevit.results.stats import differences

    if chosen.empty:
        return [], ""
    found = {row.benchmark: row for row in differences(chosen, {a: b}, metric, wanted).itertuples()}
    values = {key: list(group) for key, group in chosen.groupby(["cell", "benchmark"])["value"]}
    rows = []
    for name in benchmarks_of(chosen):
        sides = [_side(values.get((cell, name), []), metric) for cell in (a, b)]
        row = found.get(name)
        if row is None or row.n == 0:
            rows.append(_Row(name, *sides, MISSING, "no seed in common"))
        else:
            text = interval_text(row.difference, row.low, row.high, metric, "+")
            rows.append(_Row(name, *sides, f"{text} (n={row.n})", _verdict(row, wanted)))
    note = (
        "± standard deviation over seeds. A − B is paired by the n seeds in common; brackets: 95 % "
        "t interval; p after Holm's correction over these benchmarks alone."
    )
    if all(row.n < 2 for row in found.values()):
        note += " With one seed each, compare the two runs instead: densevit compare RUN RUN."
    return rows, note


def _side(values: Sequence[float], metric: str) -> str:
    if not values:
        return MISSING
    held = pd.Series(values, dtype=float)
    return spread_text(held.mean(skipna=False), held.std(skipna=False), len(held), metric)


def _verdict(row: Any, wanted: float) -> str:
    if row.verdict == "different":
        p = p_text(row.p_holm)
        return f"different (p {p if p.startswith('<') else f'= {p}'})"
    if row.verdict == "alike":
        return f"alike (within ±{wanted:g})"
    if row.verdict == "open" and (row.low > 0 or row.high < 0):
        return "open (once all of these are counted)"
    if row.verdict == "open" and not math.isnan(row.seeds_needed):
        return f"open ({row.seeds_needed:.0f} seeds would tell {wanted:g})"
    return {"open": "open", "single": "one seed: open"}.get(row.verdict, row.verdict)


def _results(folder: RunFolder) -> dict[str, dict[str, float]]:
    """Benchmark to its numbers. Errors: `UserError` if there are none that can be read."""
    held = read_json(folder.results_file)
    if held is None:
        state = folder.status().state
        raise UserError(f"{folder.results_file}: no such file; the run is {state}")
    try:
        return {
            benchmark: {metric: float(value) for metric, value in numbers.items()}
            for benchmark, numbers in held["benchmarks"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.results_file}: is not as it should be: {error!r}") from None


def _metrics_of(results: Iterable[Mapping[str, Mapping[str, float]]]) -> pd.DataFrame:
    names = {m for held in results for numbers in held.values() for m in numbers}
    return pd.DataFrame({"metric": sorted(names - {"n"})})


def _over_pictures(
    folders: tuple[RunFolder, RunFolder],
    results: Sequence[Mapping[str, Mapping[str, float]]],
    benchmark: str,
    metric: str,
    wanted: float,
) -> _Row:
    values = [held.get(benchmark, {}).get(metric) for held in results]
    sides = [MISSING if v is None else spread_text(v, math.nan, 1, metric) for v in values]
    if None in values:
        return _Row(benchmark, *sides, MISSING, NOT_APPLICABLE)
    difference = values[0] - values[1]
    found = _interval(folders, benchmark, difference) if metric == "top1" else None
    if found is None:
        alone = interval_text(difference, math.nan, math.nan, metric, "+")
        return _Row(benchmark, *sides, alone, NOT_APPLICABLE)
    low, high = found
    text = interval_text(difference, low, high, metric, "+")
    if low > 0 or high < 0:
        return _Row(benchmark, *sides, text, "different, on these pictures")
    alike = max(-low, high) <= wanted
    return _Row(benchmark, *sides, text, f"alike (within ±{wanted:g})" if alike else "open")


def _interval(
    folders: tuple[RunFolder, RunFolder], benchmark: str, difference: float
) -> tuple[float, float] | None:
    """Of a difference in top-1 over the pictures; None without the answers it was computed from."""
    from densevit.results import samples

    files = [folder.predictions_file(benchmark) for folder in folders]
    if not all(file.exists() for file in files):
        return None
    answers = [read_answers(file) for file in files]
    if not all(isinstance(each, Answers) for each in answers):
        return None
    hits = [pd.Series(each.top[:, 0] == each.labels, index=list(each.samples)) for each in answers]
    if set(hits[0].index) != set(hits[1].index) or not all(h.index.is_unique for h in hits):
        return None
    pair = [h.sort_index().to_numpy()[None] for h in hits]
    found, low, high = samples.difference(*pair)
    # Answers of another evaluation, or a benchmark whose accuracy is not of all its pictures.
    return (low, high) if math.isclose(found, difference, abs_tol=1e-6) else None


def _beside(
    spent: Sequence[Mapping[str, float]], health: Sequence[Mapping[str, float]], note: str
) -> Sheet | None:
    """Costs and health; a row a number that at least one of the two has."""
    rows = []
    for sides in (spent, health):
        for name in dict.fromkeys([*sides[0], *sides[1]]):
            values = [side.get(name, math.nan) for side in sides]
            if not all(map(math.isnan, values)):
                rows.append([name, *map(short, values)])
    return Sheet("Cost and health", ["a run's", "A", "B"], rows, note) if rows else None


_SPENT = {
    "gpu_hours": ("GPU-hours", 1),
    "images_per_second": ("images/s", 1),
    "step_ms": ("step (ms)", 1),
    "peak_memory_mib": ("peak memory (GiB)", _GIB),
}


def _costs(plan: Plan, cells: Sequence[str]) -> list[dict[str, float]]:
    table = costs(plan)
    kept = [name for name in _SPENT if name in table]
    means = table.groupby("cell")[kept].mean().reindex(list(cells))
    return [
        {_SPENT[name][0]: means.at[cell, name] * _SPENT[name][1] for name in kept} for cell in cells
    ]


def _costs_of_run(folder: RunFolder) -> dict[str, float]:
    """As those of a cell; what share of GPUs a single run had, nobody knows."""
    lines = _logged(folder)
    rates, memory = (
        [value for line in lines if (value := finite(line.get(name))) is not None]
        for name in ("train/images_per_second", "train/peak_memory_mib")
    )
    return {
        "hours": folder.status().spent / 3600 or math.nan,
        "images/s": statistics.median(rates) if rates else math.nan,
        "peak memory (GiB)": max(memory) * _GIB if memory else math.nan,
    }


def _health(folder: RunFolder) -> dict[str, float]:
    """The last value of each number of health, by its name."""
    return {
        name.removeprefix(HEALTH).replace("_", " "): value
        for line in _logged(folder)
        for name, logged in line.items()
        if name.startswith(HEALTH) and (value := number(logged)) is not None
    }


def _logged(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of a run's metrics. Errors: `UserError` if one of them is damaged."""
    try:
        return read_metrics(folder.metrics_file)[0]
    except ValueError as error:
        raise UserError(f"{folder.metrics_file}: cannot be read: {error}") from None


def _health_of_cell(plan: Plan, cell: str) -> dict[str, float]:
    """Means over the runs that have logged any; NaN where a number of one is NaN."""
    found = [_health(plan.run_folder(run)) for run in plan.runs if run.cell == cell]
    values: dict[str, list[float]] = {}
    for numbers in found:
        for name, value in numbers.items():
            values.setdefault(name, []).append(value)
    return {name: sum(held) / len(held) for name, held in values.items()}  # fmean minds infinity
