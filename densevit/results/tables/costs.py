"""The table of costs."""

from __future__ import annotations

import math

import pandas as pd

from densevit.results.stats.ranking import image_metric, image_rows
from densevit.results.tables.format import benchmarks_of, decimals, metric_title, short
from densevit.results.tables.table import MISSING, TextTable

# Column of `collect.costs` to its title and the factor to the unit of the title.
COSTS = {
    "gpu_hours": ("GPU-hours", 1.0),
    "kwh": ("kWh", 1.0),
    "images_per_second": ("images/s", 1.0),
    "peak_memory_mib": ("peak memory (GiB)", 1 / 1024),
}


def cost_table(costs: pd.DataFrame, frame: pd.DataFrame, cells: pd.DataFrame) -> TextTable:
    """Return the cost of a run of each cell beside its accuracies, each the mean over seeds.

    `costs` is `collect.costs.costs`, `frame` is `collect`; `cells` (`cells_frame`) gives labels and
    the order. A cost that no run of a cell has recorded is an en dash; without a GPU there is no
    column of energy.
    """
    measured = image_rows(frame)
    known = [name for name in COSTS if name != "kwh" or costs[name].notna().any()]
    spent = costs.groupby("cell")[known].mean().reindex(cells["cell"])
    # The NaN of a diverged seed makes the mean NaN, as in the main table.
    means = measured.groupby(["cell", "benchmark"])["value"].agg(lambda v: v.mean(skipna=False))
    runs = costs.groupby("cell")["run"].nunique()
    benchmarks = benchmarks_of(measured)
    rows = [
        [
            label, str(runs.get(cell, 0)),
            *(short(spent.at[cell, name] * COSTS[name][1]) for name in known),
            *(_mean_text(means.get((cell, name))) for name in benchmarks),
        ]
        for cell, label in zip(cells["cell"], cells["label"], strict=True)
    ]  # fmt: skip
    data = pd.DataFrame({"cell": cells["cell"], "label": cells["label"]})
    data["runs"] = [int(runs.get(cell, 0)) for cell in cells["cell"]]
    data[known] = spent.to_numpy()
    for name in benchmarks:
        data[name] = [means.get((cell, name), math.nan) for cell in cells["cell"]]
    return TextTable(
        f"Cost of a run, and {metric_title(image_metric(frame))}",
        ["cell", "runs", *(COSTS[name][0] for name in known), *benchmarks],
        rows,
        "Means over seeds: costs over all runs that have trained, accuracy over finished runs.",
        1,
        data=data,
    )


def _mean_text(value: float | None) -> str:
    return MISSING if value is None else f"{value:.{decimals('top1')}f}"
