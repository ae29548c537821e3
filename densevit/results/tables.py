"""Tables of a sweep for people: accuracy, differences, marginal effects, costs.

Each is made a `Sheet`, which `sheet.py` and `latex.py` write as Markdown, CSV, LaTeX or for the
terminal. The main table has its own record with the numbers, which figures are drawn of too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from densevit.errors import UserError, nearest
from densevit.results.sheet import DAGGER, MISSING, NOT_APPLICABLE, Mark, Sheet
from densevit.sweep.grid import cell_values, value_word
from densevit.sweep.plan import Plan

# How each metric is called and with how many decimals it is shown.
METRICS = {
    "top1": ("top-1 accuracy (%)", 1),
    "top5": ("top-5 accuracy (%)", 1),
    "nll": ("NLL", 3),
    "miou": ("mIoU (%)", 1),
    "matched_clean": ("clean top-1 accuracy in the same mix of classes (%)", 1),
    "ece": ("calibration error (%)", 1),
    "top1_all": ("top-1 accuracy among all classes (%)", 1),
    "real_top1": ("top-1 accuracy by the reassessed labels (%)", 1),
    "shape_bias": ("shape bias (%)", 1),
    "texture_top1": ("answers by the texture (%)", 1),
    "mce": ("mean corruption error (%)", 1),
    "pixel_accuracy": ("pixel accuracy (%)", 1),
}
LOWER_IS_BETTER = {"nll", "ece", "mce"}
MATTERS = 1.0  # points: a difference that does, if nobody says another


def matters(metric: str) -> float:
    """The smallest difference in a metric that matters; in nats what goes with a point or so."""
    return 0.02 if metric == "nll" else MATTERS


@dataclass(frozen=True)
class CellTable:
    """Numbers of one metric, a row a cell in the plan's order, whether it has results or not.

    `data` has the columns cell (id), label (words), one for each of `axes` (the raw value, None
    where the axis does not apply), seeds (planned), n (seeds with results), and for each of
    `benchmarks` `<benchmark>_mean`, `_std` (n-1 in the denominator; NaN for one seed) and `_n`.
    A seed whose value is NaN makes mean and std NaN: it is not dropped. With `intervals` there are
    `_low` and `_high` too, the 95 % t interval of the mean over seeds (`stats.summary`).
    """

    metric: str
    axes: tuple[str, ...]
    benchmarks: tuple[str, ...]
    data: pd.DataFrame
    intervals: bool = False


def cell_table(
    plan: Plan,
    frame: pd.DataFrame,
    metric: str = "top1",
    *,
    intervals: bool = False,
    only: Collection[str] | None = None,
) -> CellTable:
    """Summarise what `collect` gave over the seeds of each cell, or `only` of some."""
    chosen = frame[frame["metric"] == metric]
    benchmarks = benchmarks_of(chosen)
    kept = set(only) if only is not None else {run.cell for run in plan.grid.cells}
    chosen = chosen[chosen["cell"].isin(kept)]
    groups = chosen.groupby(["cell", "benchmark"], sort=False)["value"]
    numbers = groups.agg(["mean", "std", "size", "count"])
    # pandas leaves NaN out of a mean; a diverged seed must not vanish from its cell like that.
    numbers.loc[numbers["size"] != numbers["count"], ["mean", "std"]] = math.nan
    found = {key: row for key, *row in numbers[["mean", "std", "size"]].itertuples()}
    bounds = _bounds(chosen) if intervals else {}
    seeds = frame.groupby("cell")["run"].nunique()
    stopped = _stopped(plan)
    rows = []
    for run in plan.grid.cells:
        if run.cell not in kept:
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
    return CellTable(metric, plan.axes, benchmarks, data, intervals)


def _stopped(plan: Plan) -> Counter[str] | None:
    """How many runs of each cell the sweep's rule has ended early; None where it has none."""
    if plan.spec.early_stop is None:
        return None
    words = ((run.cell, plan.run_folder(run).word().state) for run in plan.runs)
    return Counter(cell for cell, state in words if state == "stopped")


def _bounds(chosen: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float]]:
    from densevit.results.stats import summary

    found = summary(chosen)
    return {(row.cell, row.benchmark): (row.low, row.high) for row in found.itertuples()}


def cell_sheet(
    table: CellTable, marks: Mapping[tuple[str, str], Mark] | None = None, note: str = ""
) -> Sheet:
    """The table as texts. `marks` are of (cell id, benchmark), as `best.best_marks` gives them, and
    told in the note."""
    head, rows = to_text(table)
    first = len(head) - len(table.benchmarks)
    placed = {
        (i, first + j): marks[cell, name]
        for i, cell in enumerate(table.data["cell"] if marks else ())
        for j, name in enumerate(table.benchmarks)
        if (cell, name) in marks
    }
    spread = "mean [95 % interval]" if table.intervals else "mean ± std"
    title = f"{metric_title(table.metric)}, {spread} over seeds"
    told = (_MARKED[mark] for mark in ("best", "tied") if mark in placed.values())
    note = " ".join([*([note] if note else []), *told])
    return Sheet(title, head, rows, note, len(table.axes) or 1, placed, _data(table))


def to_text(table: CellTable) -> tuple[list[str], list[list[str]]]:
    """The head and the rows as text: the axes (or the cell's label), seeds, the benchmarks."""
    head = [*(table.axes or ("cell",)), "seeds", *table.benchmarks]
    rows = []
    for row in table.data.to_dict("records"):
        axes = [value_word(row[axis]) or "{}" for axis in table.axes] or [row["label"]]
        numbers = [_number_text(row, name, table) for name in table.benchmarks]
        ended = f" ({row['stopped']} stopped)" if row.get("stopped") else ""
        rows.append([*axes, f"{row['n']}/{row['seeds']}{ended}", *numbers])
    return head, rows


_MARKED = {
    "best": "Bold: the best of a column, told apart from every other cell (paired by seed, "
    "p < 0.05 after Holm's correction within the column).",
    "tied": f"{DAGGER}: the best mean and what is not told apart from it.",
}
_COSTS = {
    "gpu_hours": ("GPU-hours", 1),
    "images_per_second": ("images/s", 1),
    "peak_memory_mib": ("peak memory (GiB)", 1 / 1024),
}


def difference_table(differences: pd.DataFrame, cells: pd.DataFrame, wanted: float = 1.0) -> Sheet:
    """Each cell's difference to its baseline: a row a cell, a column a benchmark.

    `differences` are those of `stats.differences`, of one metric; `cells` is `cells_frame`, in
    whose order the rows are; `wanted` is what `differences` were told, for the legend.
    """
    labels = dict(zip(cells["cell"], cells["label"], strict=True))
    metric = differences["metric"].iloc[0] if len(differences) else "top1"
    benchmarks = benchmarks_of(differences)
    found = {(row.cell, row.benchmark): row for row in differences.itertuples()}
    against = dict(zip(differences["cell"], differences["baseline"], strict=True))
    most = differences["n"].max() if len(differences) else 0
    rows = [
        [labels[cell], labels.get(against[cell], against[cell])]
        + [_difference_text(found.get((cell, name)), most) for name in benchmarks]
        for cell in labels
        if cell in against
    ]
    data = differences.assign(
        label=differences["cell"].map(labels), baseline_label=differences["baseline"].map(labels)
    )
    return Sheet(
        f"Difference in {metric_title(metric)}, paired by seed",
        ["cell", "against", *benchmarks],
        rows,
        _legend(set(differences["verdict"]), most, wanted),
        2,
        data=data,
    )


def _difference_text(row: Any, most: int) -> str:
    """`+1.8 [0.9, 2.7] *`, with its own n where that is less than the table's."""
    if row is None or row.n == 0:
        return MISSING
    text = interval_text(row.difference, row.low, row.high, row.metric, "+")
    mark = VERDICTS.get(row.verdict, ("", ""))[0]
    return text + (f" {mark}" if mark else "") + (f" (n={row.n})" if row.n != most else "")


# What a verdict of `stats.differences` is marked with, and what it means.
VERDICTS = {
    "different": ("*", "different (p < 0.05 after Holm's correction over all comparisons)"),
    "alike": ("≈", "alike (not different, and the interval lies within ±{wanted:g})"),
    "open": ("", "open (these seeds cannot tell)"),
    "single": ("", "single (one seed in common, so no interval)"),
    "undefined": ("?", "a value is not a number"),
}


def _legend(verdicts: set[str], most: int, wanted: float) -> str:
    told = [
        f"{mark or 'no mark'}: {words.format(wanted=wanted)}"
        for name, (mark, words) in VERDICTS.items()
        if name in verdicts
    ]
    seeds = f"n = {most} seeds in common where no other n is named. " if most else ""
    marks = f"Marks: {'; '.join(told)}." if told else ""
    return f"Brackets: 95 % t interval. {seeds}{marks}".rstrip()


def marginal_table(marginals: pd.DataFrame) -> Sheet:
    """The effect of each axis' levels over the grid: the rows of `stats.marginals`, as they are.

    Frames of several axes, or of several benchmarks in a column `benchmark`, may be put together.
    """
    named = [name for name in ("benchmark", "axis") if name in marginals]
    metric = marginals["metric"].iloc[0] if "metric" in marginals and len(marginals) else "top1"
    rows = [
        [
            *(str(row[name]) for name in named), value_word(row["level"]),
            value_word(row["reference"]), str(row["contexts"]), str(row["n"]),
            interval_text(row["difference"], row["low"], row["high"], metric, "+"),
            p_text(row["p_holm"]),
        ]
        for row in marginals.to_dict("records")
    ]  # fmt: skip
    return Sheet(
        f"Effect of each axis on {metric_title(metric)}",
        [*named, "level", "against", "contexts", "n", "difference", "p"],
        rows,
        "Mean over the contexts, which are the settings of all other axes that both levels have. "
        "Brackets: 95 % interval. p after Holm's correction over all axes and test sets.",
        len(named) + 2,
        data=marginals.assign(
            level=as_written(marginals["level"]), reference=as_written(marginals["reference"])
        ),
    )


def cost_table(
    costs: pd.DataFrame,
    frame: pd.DataFrame,
    cells: pd.DataFrame | None = None,
    metric: str = "top1",
) -> Sheet:
    """What a run of each cell cost beside what it reached, each the mean over the seeds.

    `costs` are those of `collect.costs`, `frame` is `collect.collect`; `cells` (`cells_frame`)
    gives labels and the order. A cost that no run of a cell has recorded is an en dash.
    """
    chosen = frame[frame["metric"] == metric]
    if cells is None:
        ids = list(dict.fromkeys([*costs["cell"], *chosen["cell"]]))
        cells = pd.DataFrame({"cell": ids, "label": ids})
    kept = [name for name in _COSTS if name in costs]
    spent = costs.groupby("cell")[kept].mean().reindex(cells["cell"])
    # A diverged seed's NaN makes the mean NaN, as in the main table.
    means = chosen.groupby(["cell", "benchmark"])["value"].agg(lambda v: v.mean(skipna=False))
    runs = costs.groupby("cell")["run"].nunique()
    benchmarks = benchmarks_of(chosen)
    rows = [
        [
            label, str(runs.get(cell, 0)),
            *(short(spent.at[cell, name] * _COSTS[name][1]) for name in kept),
            *(_mean_text(means.get((cell, name)), metric) for name in benchmarks),
        ]
        for cell, label in zip(cells["cell"], cells["label"], strict=True)
    ]  # fmt: skip
    data = pd.DataFrame({"cell": cells["cell"], "label": cells["label"]})
    data["runs"] = [int(runs.get(cell, 0)) for cell in cells["cell"]]
    data[kept] = spent.to_numpy()
    for name in benchmarks:
        data[name] = [means.get((cell, name), math.nan) for cell in cells["cell"]]
    return Sheet(
        f"Cost of a run, and {metric_title(metric)}",
        ["cell", "runs", *(_COSTS[name][0] for name in kept), *benchmarks],
        rows,
        "Means over the seeds: costs over all runs that have trained, accuracy over those that are "
        "finished.",
        1,
        data=data,
    )


def _mean_text(value: float | None, metric: str) -> str:
    return MISSING if value is None else f"{value:.{decimals(metric)}f}"


def short(value: float) -> str:
    """A number to three digits, without an exponent: 0.0123, 1.23, 1,234."""
    if math.isnan(value):
        return NOT_APPLICABLE
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def p_text(p: float) -> str:
    """A p value to three decimals."""
    return NOT_APPLICABLE if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def benchmarks_of(chosen: pd.DataFrame) -> tuple[str, ...]:
    """Those in a frame, val before the others; val, too, as long as there are none."""
    names = list(dict.fromkeys(chosen["benchmark"])) or ["val"]
    return tuple(sorted(names, key=lambda name: name != "val"))


def check_metric(frame: pd.DataFrame, metric: str) -> None:
    """Errors: `UserError` for a metric that no run has and that is none of ours."""
    valid = {*METRICS, *frame["metric"]}
    if metric not in valid:
        raise UserError(f"--metric {metric}: no run has it; {nearest(metric, valid)}")


def metric_title(metric: str) -> str:
    """What a metric is called in a title."""
    return METRICS[metric][0] if metric in METRICS else metric


def decimals(metric: str) -> int:
    """With how many decimals a metric is shown."""
    return METRICS[metric][1] if metric in METRICS else 1


def spread_text(mean: float, std: float, n: int, metric: str) -> str:
    """`71.2 ± 0.8`; of one value without a spread."""
    places = decimals(metric)
    return f"{mean:.{places}f}" + (f" ± {std:.{places}f}" if n > 1 else "")


def interval_text(value: float, low: float, high: float, metric: str, sign: str = "") -> str:
    """`71.2 [70.1, 72.3]`, or the value alone where there is no interval; `sign` is + for both."""
    shown = f"z.{decimals(metric)}f"  # z: what rounds to zero has no minus
    text = f"{value:{sign}{shown}}" if not math.isnan(value) else "nan"
    return text if math.isnan(low) else f"{text} [{low:{shown}}, {high:{shown}}]"


def as_given(values: Iterable[Any]) -> pd.Series:
    """A column in which whole numbers stay whole beside a None."""
    return pd.Series(list(values), dtype=object)


def as_written(values: Iterable[Any]) -> pd.Series:
    """A column of axis values for CSV: a mapping is JSON."""
    return as_given(json.dumps(v) if isinstance(v, dict) else v for v in values)


def _data(table: CellTable) -> pd.DataFrame:
    return table.data.assign(**{axis: as_written(table.data[axis]) for axis in table.axes})


def _number_text(row: dict[str, Any], benchmark: str, table: CellTable) -> str:
    """`71.2 ± 0.8` or `71.2 [70.1, 72.3]`, with its own n where that is not the row's."""
    mean, std, n = (row[f"{benchmark}_{part}"] for part in ("mean", "std", "n"))
    if n == 0:
        return MISSING
    if table.intervals:
        bounds = (row[f"{benchmark}_{part}"] for part in ("low", "high"))
        text = interval_text(mean, *bounds, table.metric)
    else:
        text = spread_text(mean, std, n, table.metric)
    return text if n == row["n"] else f"{text} (n={n})"
