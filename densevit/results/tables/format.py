"""Format metrics: titles, decimals, spreads, intervals, p-values."""

from __future__ import annotations

import math

import pandas as pd

from densevit.config.metrics import CLASSIFICATION, MULTILABEL, SMALLEST_EFFECT, Metric
from densevit.config.probes import probes_by_name
from densevit.data.known_benchmarks import LAYOUTS, expected_classes
from densevit.evaluate.benchmark_metrics import BENCHMARK_METRICS
from densevit.results.tables.table import NOT_APPLICABLE
from densevit.utils.errors import UserError, nearest

MINUS = "−"


def known_metrics() -> dict[str, Metric]:
    """Return the metrics of test sets, of single benchmarks and of probes, by name."""
    lists = [CLASSIFICATION, MULTILABEL, *(record.metrics for record in BENCHMARK_METRICS)]
    lists += [probe.metrics for probe in probes_by_name().values()]
    return {metric.name: metric for metrics in lists for metric in metrics}


def lower_is_better(metric: str) -> bool:
    known = known_metrics().get(metric)
    return known is not None and known.lower_is_better


def matters(metric: str) -> float:
    """Return the smallest difference in a metric that matters; in nats about as much as a point."""
    return 0.02 if metric == "nll" else SMALLEST_EFFECT


def short(value: float) -> str:
    """Return a number with three digits and no exponent: 0.0123, 1.23, 1,234."""
    if math.isnan(value):
        return NOT_APPLICABLE
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def p_text(p: float) -> str:
    """Return a p value with three decimals."""
    return NOT_APPLICABLE if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def shared_classes(frame: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Return the known benchmarks of which runs have only some classes, as ImageNet-100 has of
    ImageNet-A: how many, and of how many. Other numbers on them are no comparison."""
    ways = frame[frame["metric"] == "ways"].groupby("benchmark")["value"].min()
    published = {
        name: len(expected_classes(LAYOUTS[name])) for name in ways.index if name in LAYOUTS
    }
    return {
        name: (int(ways[name]), known) for name, known in published.items() if ways[name] < known
    }


def benchmarks_of(chosen: pd.DataFrame) -> tuple[str, ...]:
    """Return the benchmarks of a frame, val first; only val if there are none."""
    names = list(dict.fromkeys(chosen["benchmark"])) or ["val"]
    return tuple(sorted(names, key=lambda name: name != "val"))


def check_metric(frame: pd.DataFrame, metric: str) -> None:
    """Check that a metric is known or that a run has it. Errors: `UserError`."""
    valid = {*known_metrics(), *frame["metric"]}
    if metric not in valid:
        raise UserError(f"--metric {metric}: no run has it; {nearest(metric, valid)}")


def metric_title(metric: str) -> str:
    """Return the name of a metric for a title."""
    known = known_metrics().get(metric)
    return known.title if known else metric


def decimals(metric: str) -> int:
    """Return the number of decimals of a metric."""
    known = known_metrics().get(metric)
    return known.decimals if known else 1


def spread_text(mean: float, std: float, n: int, metric: str) -> str:
    """Return `71.2 ± 0.8`; for one value no spread."""
    if math.isnan(mean):
        return "nan"
    places = decimals(metric)
    return f"{mean:.{places}f}" + (f" ± {std:.{places}f}" if n > 1 else "")


def interval_text(value: float, low: float, high: float, metric: str, sign: str = "") -> str:
    """Return `71.2 [70.1, 72.3]`, or the value alone without interval; `sign` "+" adds a plus."""
    form = f"z.{decimals(metric)}f"  # z: no minus sign for a value that rounds to zero
    text = f"{value:{sign}{form}}" if not math.isnan(value) else "nan"
    text = text if math.isnan(low) else f"{text} [{low:{form}}, {high:{form}}]"
    return text.replace("-", MINUS)
