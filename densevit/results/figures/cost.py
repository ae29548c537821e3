"""What a step takes, in time and memory, beside accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from densevit.results.figures.style import (
    COLUMN,
    INK,
    LINE,
    PALETTE,
    ROW,
    Legend,
    bare,
    labels_of,
    lines_in,
    new_figure,
    note,
    note_height,
    said,
    seed_means,
    styled,
    wrapped,
)
from densevit.results.tables import metric_title

LABEL = 22  # letters of a cell's label on a line
_HATCHES = ("", "/////", ".....", "xxxxx", "-----", "\\\\\\\\\\")
_GREY = "#c8c8c8"


def cost(
    costs: pd.DataFrame,
    frame: pd.DataFrame | None,
    cells: pd.DataFrame,
    *,
    benchmark: str = "val",
    metric: str = "top1",
) -> Figure | None:
    """Time of a step by its phases and peak memory of each cell, and accuracy where `frame` has it;
    None if no run has logged any.

    `costs` is `collect.costs`: its columns that end in _ms are the phases, but for step_ms, which
    is the sum of them and stands in their place where a cell has logged none. Means over the runs
    of a cell that have logged it. `frame` is that of `collect`; a seed that is not a number makes
    its cell's accuracy none. A row a cell, in the order of `cells` (`cells_frame`).
    """
    known = [name for name in ("step_ms", "peak_memory_mib") if name in costs]
    phases = [name for name in costs if name.endswith("_ms") and name != "step_ms"]
    phases = [name for name in phases if costs[name].notna().any()]
    means = costs.groupby("cell")[[*known, *phases]].mean()
    if means.notna().to_numpy().sum() == 0:
        return None
    means = means.reindex(cells["cell"])
    accuracies = _accuracies(frame, cells, benchmark, metric)
    kept = means["peak_memory_mib"].notna().any() if "peak_memory_mib" in known else False
    ratios = [2.0, *([1.0] if kept else []), *([1.0] if accuracies is not None else [])]
    labels = [wrapped(labels_of(cells)[cell], LABEL) for cell in cells["cell"]]
    legend = Legend([_word(name) for name in phases])
    texts = ["Means over runs; memory at its peak."]
    each = max(ROW, LINE * lines_in(labels) + 0.02)
    with styled():
        height = each * len(cells) + legend.height + note_height(texts) + 0.5
        figure = new_figure(COLUMN, height)
        panels = list(
            figure.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
        )
        _phases(panels.pop(0), means, phases)
        if kept:
            _dots(panels.pop(0), means["peak_memory_mib"] / 1024, "memory\n(GiB)", zero=True)
        if accuracies is not None:
            title = wrapped(f"{_short(metric)} on {benchmark}", 10)
            _dots(panels.pop(0), accuracies, title, zero=False)
        axes = figure.axes[0]
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        note(figure, texts)
        legend.draw(figure, _handles(phases))
        return figure


def _accuracies(
    frame: pd.DataFrame | None, cells: pd.DataFrame, benchmark: str, metric: str
) -> pd.Series | None:
    if frame is None:
        return None
    rows = frame[(frame["benchmark"] == benchmark) & (frame["metric"] == metric)]
    if rows.empty:
        return None
    return seed_means(rows).reindex(cells["cell"])


def _phases(axes: Axes, means: pd.DataFrame, phases: Sequence[str]) -> None:
    """Bars of a step's phases, one after the other."""
    _frame(axes, "time of a step\n(ms)")
    for y, row in enumerate(means.to_dict("records")):
        start = 0.0
        for i, name in enumerate(phases):
            if math.isfinite(row[name]):
                axes.barh(y, row[name], 0.72, start, **_fill(i))
                start += row[name]
        whole = row.get("step_ms", math.nan)
        if start == 0.0 and math.isfinite(whole):
            axes.barh(y, whole, 0.72, color=_GREY, edgecolor=INK, linewidth=0.3)
        elif start == 0.0:
            said(axes, y, "missing")
    axes.set_xlim(left=0)


def _dots(axes: Axes, values: pd.Series, title: str, *, zero: bool) -> None:
    _frame(axes, title)
    finite = values[values.abs() < math.inf]
    axes.plot(
        finite.to_numpy(), [y for y, v in enumerate(values) if abs(v) < math.inf], linestyle="",
        marker="o", markersize=3.6, markerfacecolor=INK, markeredgewidth=0, clip_on=False,
    )  # fmt: skip
    for y, value in enumerate(values):
        if not abs(value) < math.inf:
            said(axes, y, "missing")
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    edge = 0.08 * (high - low) or 0.5
    axes.set_xlim(0 if zero else low - edge, high + edge)


def _frame(axes: Axes, title: str) -> None:
    bare(axes, "left")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10], min_n_ticks=2))
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.5)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
    axes.set_xlabel(title, fontsize=6.5)


def _handles(phases: Sequence[str]) -> list[Patch]:
    return [Patch(**_fill(i)) for i in range(len(phases))]


def _fill(i: int) -> dict[str, object]:
    return {
        "facecolor": PALETTE[i % len(PALETTE)],
        "hatch": _HATCHES[(i + i // len(PALETTE)) % len(_HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.3,
    }


def _word(name: str) -> str:
    return name.removesuffix("_ms").replace("_", " ")


def _short(metric: str) -> str:
    return metric_title(metric).replace("accuracy ", "")
