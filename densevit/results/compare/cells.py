"""Compare two cells of a sweep: settings, accuracy, costs and health."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from densevit.config.run_config import SCIENCE
from densevit.results.collect.numbers import collect, costs
from densevit.results.compare.comparison import (
    BenchmarkRow,
    Comparison,
    cost_and_health_table,
    last_health,
    numbers_table,
    settings_table,
)
from densevit.results.stats.ranking import image_metric
from densevit.results.tables.costs import COSTS
from densevit.results.tables.format import (
    benchmarks_of,
    check_metric,
    interval_text,
    p_text,
    spread_text,
)
from densevit.results.tables.table import MISSING
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError

_COSTS = {**COSTS, "step_ms": ("step (ms)", 1.0)}


def compare_cells(
    plan: Plan, a: Run, b: Run, metric: str | None = None, smallest_effect: float = 1.0
) -> Comparison:
    """Compare two cells of a sweep, with differences A − B paired by seed (`seeds.differences`).

    `metric` is None for the main one.

    Holm's correction is over the benchmarks. `smallest_effect` is the smallest difference that
    matters.

    Errors: `UserError` if both are the same cell, or if no run has the metric.
    """
    if a.cell == b.cell:
        raise UserError(f"{plan.label(a)}: A and B are the same cell, {a.cell}")
    frame = collect(plan)
    metric = image_metric(frame) if metric is None else metric
    check_metric(frame, metric)
    pair = (a.cell, b.cell)
    frame = frame[frame["cell"].isin(pair)]
    found = [frame.loc[frame["cell"] == cell, "run"].nunique() for cell in pair]
    lines = [
        f"{letter}  {plan.label(run)} (cell {run.cell}, {n} of {len(plan.spec.seeds)} seeds)"
        for letter, run, n in zip("AB", (a, b), found, strict=True)
    ]
    rows, note = _over_seeds(frame[frame["metric"] == metric], *pair, metric, smallest_effect)
    return Comparison(
        lines,
        settings_table(a.config, b.config, tuple(SCIENCE)),
        numbers_table(rows, metric, note),
        cost_and_health_table(
            _costs(plan, pair),
            [_health_of_cell(plan, cell) for cell in pair],
            "Means over the seeds that have trained; health: the last logged values.",
        ),
    )


def _over_seeds(
    chosen: pd.DataFrame, a: str, b: str, metric: str, smallest_effect: float
) -> tuple[list[BenchmarkRow], str]:
    """Return one row per benchmark, and the note."""
    from densevit.results.stats.seeds import differences

    if chosen.empty:
        return [], ""
    paired = differences(chosen, {a: b}, metric, smallest_effect)
    found = {row.benchmark: row for row in paired.itertuples()}
    values = {key: list(group) for key, group in chosen.groupby(["cell", "benchmark"])["value"]}
    rows = []
    for name in benchmarks_of(chosen):
        texts = [_spread(values.get((cell, name), []), metric) for cell in (a, b)]
        row = found.get(name)
        if row is None or row.n == 0:
            difference, verdict = MISSING, "no seed in common"
        else:
            interval = interval_text(row.difference, row.low, row.high, metric, "+")
            difference, verdict = f"{interval} (n={row.n})", _verdict(row, smallest_effect)
        rows.append(BenchmarkRow(name, texts[0], texts[1], difference, verdict))
    note = (
        "±: standard deviation over seeds. A − B is paired over the n common seeds; brackets: 95 % "
        "t interval; p after Holm's correction over these benchmarks only."
    )
    if all(row.n < 2 for row in found.values()):
        note += " With one seed each, compare the two runs instead: densevit compare RUN RUN."
    return rows, note


def _spread(values: Sequence[float], metric: str) -> str:
    if not values:
        return MISSING
    series = pd.Series(values, dtype=float)
    return spread_text(series.mean(skipna=False), series.std(skipna=False), len(series), metric)


def _verdict(row: Any, smallest_effect: float) -> str:
    if row.verdict == "established":
        p = p_text(row.p_holm)
        return f"established (p {p if p.startswith('<') else f'= {p}'})"
    if row.verdict == "equivalent":
        return f"equivalent (within ±{smallest_effect:g})"
    if row.verdict == "hint":
        return "hint (not established after Holm's correction)"
    if row.verdict == "too noisy" and not math.isnan(row.seeds_needed):
        return f"too noisy ({row.seeds_needed:.0f} seeds would establish {smallest_effect:g})"
    return "one seed: no conclusion" if row.verdict == "single" else str(row.verdict)


def _costs(plan: Plan, cells: Sequence[str]) -> list[dict[str, float]]:
    table = costs(plan)
    means = table.groupby("cell")[list(_COSTS)].mean().reindex(list(cells))
    return [
        {title: means.at[cell, name] * factor for name, (title, factor) in _COSTS.items()}
        for cell in cells
    ]


def _health_of_cell(plan: Plan, cell: str) -> dict[str, float]:
    """Return means over the runs that have logged health; NaN if a value of one run is NaN."""
    values: dict[str, list[float]] = {}
    for run in plan.runs:
        if run.cell == cell:
            for name, value in last_health(plan.run_folder(run)).items():
                values.setdefault(name, []).append(value)
    return {name: sum(each) / len(each) for name, each in values.items()}  # fmean fails on ±inf
