"""Compare two runs image by image."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

import pandas as pd

from densevit.config.run_config import SCIENCE
from densevit.results.compare.comparison import (
    BenchmarkRow,
    Comparison,
    cost_and_health_table,
    last_health,
    logged_lines,
    numbers_table,
    settings_table,
)
from densevit.results.stats.ranking import image_metric
from densevit.results.tables.format import check_metric, interval_text, spread_text
from densevit.results.tables.table import MISSING, NOT_APPLICABLE
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import finite
from densevit.utils.errors import UserError


def compare_runs(
    a: RunFolder, b: RunFolder, metric: str | None = None, smallest_effect: float = 1.0
) -> Comparison:
    """Compare two runs, with the interval of A − B over the images (`bootstrap.difference`).

    The interval requires that both saved their predictions for the same images. `smallest_effect`
    is the smallest difference that matters.

    Errors: `UserError` if both are the same run, or if a run has no results.
    """
    if a.path.resolve() == b.path.resolve():
        raise UserError(f"{a.path.name}: A and B are the same run")
    configs = (a.config(), b.config())
    results = (_results(a), _results(b))
    lines = [
        f"{letter}  {folder.path.name} (cell {folder.ids()[1]}, seed {config.seed})"
        for letter, folder, config in zip("AB", (a, b), configs, strict=True)
    ]
    measured = _metrics_of(results)
    metric = image_metric(measured) if metric is None else metric
    check_metric(measured, metric)
    names = [name for each in results for name, numbers in each.items() if metric in numbers]
    rows = [
        _over_images((a, b), results, name, metric, smallest_effect)
        for name in sorted(dict.fromkeys(names), key=lambda name: name != "val")
    ]
    note = "One run each: other seeds may differ by more or less. " + (
        "Brackets: 95 % bootstrap interval over the images."
        if any("[" in row.difference for row in rows)
        else "No interval: the runs have no saved predictions for the same images."
        if metric == "top1"
        else "No interval: it exists for top1 only."
    )
    return Comparison(
        lines,
        settings_table(*configs, (*SCIENCE, "seed")),
        numbers_table(rows, metric, note),
        cost_and_health_table(
            [_costs_of_run(folder) for folder in (a, b)],
            [last_health(folder) for folder in (a, b)],
            "Health: the last logged values.",
        ),
    )


_Results = Mapping[str, Mapping[str, float]]  # benchmark to metric to value


def _results(folder: RunFolder) -> _Results:
    """Return the metrics of each benchmark. Errors: `UserError` if there are none to read."""
    record = folder.results()
    if record is None:
        state = folder.status().state
        raise UserError(f"{folder.results_file}: no such file; the run is {state}")
    return {
        benchmark: {metric: float(value) for metric, value in numbers.items()}
        for benchmark, numbers in record["benchmarks"].items()
    }


def _metrics_of(results: Iterable[_Results]) -> pd.DataFrame:
    names = {m for each in results for numbers in each.values() for m in numbers}
    return pd.DataFrame({"metric": sorted(names - {"n"})})


def _over_images(
    folders: tuple[RunFolder, RunFolder],
    results: tuple[_Results, _Results],
    benchmark: str,
    metric: str,
    smallest_effect: float,
) -> BenchmarkRow:
    """Return a benchmark's row, with the interval over images if there is one."""
    a, b = (each.get(benchmark, {}).get(metric) for each in results)
    a_text, b_text = (
        MISSING if value is None else spread_text(value, math.nan, 1, metric) for value in (a, b)
    )
    if a is None or b is None:
        return BenchmarkRow(benchmark, a_text, b_text, MISSING, NOT_APPLICABLE)
    found = _interval(folders, benchmark, a - b) if metric == "top1" else None
    low, high = (math.nan, math.nan) if found is None else found
    if found is None:
        verdict = NOT_APPLICABLE
    elif low > 0 or high < 0:
        verdict = "established, on these images"
    else:
        inside = max(-low, high) <= smallest_effect
        verdict = f"equivalent (within ±{smallest_effect:g})" if inside else "too noisy"
    text = interval_text(a - b, low, high, metric, "+")
    return BenchmarkRow(benchmark, a_text, b_text, text, verdict)


def _interval(
    folders: tuple[RunFolder, RunFolder], benchmark: str, difference: float
) -> tuple[float, float] | None:
    """Return the interval of a top-1 difference over the images; None without its predictions."""
    from densevit.results.stats import bootstrap

    files = [folder.predictions_file(benchmark) for folder in folders]
    if not all(file.exists() for file in files):
        return None
    a, b = (bootstrap.file_hits(file) for file in files)
    if a is None or b is None or a.images != b.images:
        return None
    found, low, high = bootstrap.difference(a.hits[None], b.hits[None])
    # Else the predictions are of another evaluation, or the accuracy is not over all images.
    return (low, high) if math.isclose(found, difference, abs_tol=1e-6) else None


def _costs_of_run(folder: RunFolder) -> dict[str, float]:
    """Return costs as for a cell, but hours, not GPU-hours: a single run's share is unknown."""
    lines = logged_lines(folder)
    rates, memory = (
        [value for line in lines if (value := finite(line.get(name))) is not None]
        for name in ("train/images_per_second", "train/peak_memory_mib")
    )
    return {
        "hours": folder.status().spent / 3600 or math.nan,
        "images/s": statistics.median(rates) if rates else math.nan,
        "peak memory (GiB)": max(memory) / 1024 if memory else math.nan,
    }
