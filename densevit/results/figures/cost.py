"""Time and memory of a training step, and accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from densevit.results.figures.layout import row_axes, write_in_row
from densevit.results.figures.legend import Legend, note, note_height
from densevit.results.figures.style import (
    COLUMN,
    INK,
    LINE,
    PALETTE,
    ROW,
    labels_of,
    lines_in,
    new_figure,
    seed_means,
    styled,
    wrapped,
)
from densevit.results.stats.ranking import image_metric, image_rows
from densevit.results.tables.format import metric_title

LABEL = 22  # letters per line of a cell's label
_HATCHES = ("", "/////", ".....", "xxxxx", "-----", "\\\\\\\\\\")
_GRAY = "#c8c8c8"


def cost(
    costs: pd.DataFrame, frame: pd.DataFrame, cells: pd.DataFrame, *, benchmark: str = "val"
) -> Figure | None:
    """Draw each cell's step time by phase, its peak memory, and its top-1 if `frame` has it.

    Return None if no run has logged any. `costs` is `collect.costs`: its columns that end in _ms
    are the phases, except step_ms, their sum, which is drawn for a cell without phases. Values are
    means over the runs that logged them. `frame` is that of `collect`; a seed that is NaN makes its
    cell's accuracy missing. One row per cell, in the order of `cells` (`cells_frame`).
    """
    known = [name for name in ("step_ms", "peak_memory_mib") if name in costs]
    phases = [name for name in costs if name.endswith("_ms") and name != "step_ms"]
    phases = [name for name in phases if costs[name].notna().any()]
    means = costs.groupby("cell")[[*known, *phases]].mean()
    if means.notna().to_numpy().sum() == 0:
        return None
    means = means.reindex(cells["cell"])
    has_memory = "peak_memory_mib" in known and means["peak_memory_mib"].notna().any()
    rows = image_rows(frame[frame["benchmark"] == benchmark])
    ratios = [2.0, *([1.0] if has_memory else []), *([] if rows.empty else [1.0])]
    labels = [wrapped(labels_of(cells)[cell], LABEL) for cell in cells["cell"]]
    legend = Legend([name.removesuffix("_ms").replace("_", " ") for name in phases])
    texts = ["Means over runs; memory at its peak."]
    each = max(ROW, LINE * lines_in(labels) + 0.02)
    with styled():
        height = each * len(cells) + legend.height + note_height(texts) + 0.6
        figure = new_figure(COLUMN, height)
        panels = list(
            figure.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
        )
        _phases(panels.pop(0), means, phases)
        if has_memory:
            _dots(panels.pop(0), means["peak_memory_mib"] / 1024, "memory\n(GiB)", zero=True)
        if not rows.empty:
            accuracies = seed_means(rows).reindex(cells["cell"])
            _dots(
                panels.pop(0),
                accuracies,
                wrapped(f"{metric_title(image_metric(rows))} on {benchmark}", 10),
                zero=False,
            )
        axes = figure.axes[0]
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        note(figure, texts)
        legend.draw(figure, [_filled(Patch(), i) for i in range(len(phases))])
        return figure


def _phases(axes: Axes, means: pd.DataFrame, phases: Sequence[str]) -> None:
    """Draw the phases of a step as stacked bars."""
    _frame(axes, "time of a step\n(ms)")
    for y, row in enumerate(means.to_dict("records")):
        start = 0.0
        for i, name in enumerate(phases):
            if math.isfinite(row[name]):
                _filled(axes.barh(y, row[name], 0.72, start)[0], i)
                start += row[name]
        whole = row.get("step_ms", math.nan)
        if start == 0.0 and math.isfinite(whole):
            axes.barh(y, whole, 0.72, color=_GRAY, edgecolor=INK, linewidth=0.3)
        elif start == 0.0:
            write_in_row(axes, y, "missing")
    axes.set_xlim(left=0)


def _dots(axes: Axes, values: pd.Series, title: str, *, zero: bool) -> None:
    _frame(axes, title)
    # Steps of 4 too: in so narrow a panel, the labels of steps of 2 may overlap.
    axes.xaxis.set_major_locator(MaxNLocator(nbins=2, steps=[1, 2, 4, 5, 10]))
    finite = values[values.abs() < math.inf]
    axes.plot(
        finite.to_numpy(), [y for y, v in enumerate(values) if abs(v) < math.inf], linestyle="",
        marker="o", markersize=3.6, markerfacecolor=INK, markeredgewidth=0, clip_on=False,
    )  # fmt: skip
    for y, value in enumerate(values):
        if not abs(value) < math.inf:
            write_in_row(axes, y, "missing")
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    edge = 0.08 * (high - low) or 0.5
    axes.set_xlim(0 if zero else low - edge, high + edge)


def _frame(axes: Axes, title: str) -> None:
    row_axes(axes, 3)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.5)
    axes.set_xlabel(title, fontsize=6.5)


def _filled(patch: Patch, i: int) -> Patch:
    """Give a bar or a legend handle the color and the hatch of phase `i`."""
    patch.set(
        facecolor=PALETTE[i % len(PALETTE)], edgecolor="white", linewidth=0.3,
        hatch=_HATCHES[(i + i // len(PALETTE)) % len(_HATCHES)],
    )  # fmt: skip
    return patch
