"""Accuracy under shift against clean accuracy, with the line of reference models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from densevit.data.names import CLEAN
from densevit.errors import UserError
from densevit.results.figures.style import (
    COLUMN,
    FAINT,
    LOOKS,
    Legend,
    Look,
    bare,
    handle,
    labels_of,
    new_figure,
    note,
    note_height,
    picked,
    styled,
    wrapped,
)
from densevit.results.robustness import (
    AMONG_200,
    PICTURES,
    Line,
    _pairs,
    as_references,
    comparable,
    fit_line,
)

# On the logit scale, where 0.4 are 10 points around 50 %: wider beside models, to show their line.
LEAST_SPAN, LEAST_SPAN_MODELS = 0.4, 1.2
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)


class _Panel(NamedTuple):
    """A benchmark: the runs as cell, clean, shifted; the reference models; their line."""

    name: str
    runs: pd.DataFrame
    models: pd.DataFrame
    line: Line | None


def shift(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    benchmarks: str | Sequence[str],
    references: pd.DataFrame | None = None,
    *,
    shown: Sequence[str] = (),
) -> Figure | None:
    """Clean against shifted top-1 accuracy on logit scales, a panel a benchmark; None if no run has
    both.

    `frame` is that of `collect`, `cells` is `cells_frame`, `references` are
    `robustness.read_references`. A cell is the mean of its seeds, which are small dots; reference
    models are grey crosses with their line. Runs are drawn only where they are `comparable`; clean
    accuracy is that from which `robustness.effective` starts. Without a line, y = x is drawn.
    Of more than six cells six have a look (`shown`, or the best on the first benchmark), the others
    are hollow circles. A panel holds the cells and what is near them; a note counts reference
    models beyond. A run without a number in one of the two has no dot; a note counts such cells.
    Another says which benchmarks were measured and have no panel, and why.
    """
    asked = [benchmarks] if isinstance(benchmarks, str) else list(benchmarks)
    frame = frame[frame["cell"].isin(cells["cell"])]
    panels = _panels(frame, asked, references)
    if not panels:
        return None
    means = panels[0].runs.groupby("cell")["shifted"].mean().sort_values(ascending=False)
    drawn = {cell for panel in panels for cell in panel.runs["cell"]}
    order = [cell for cell in cells["cell"] if cell in drawn]
    looks = dict(zip(picked(order, list(means.index), shown), LOOKS, strict=False))
    labels = labels_of(cells)
    legend = Legend([labels[cell] for cell in looks])
    views = [_view(panel) for panel in panels]
    texts = _notes(panels, views, len(cells), len(order), len(looks))
    texts += _left_out(frame, [name for name in asked if name not in {p.name for p in panels}])
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    with styled():
        size = 2.6 if len(panels) == 1 else 1.62 * lines
        figure = new_figure(COLUMN, size + legend.height + note_height(texts) + 0.2)
        grid = figure.subplots(lines, columns, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number < len(panels):
                _draw(axes, panels[number], views[number], looks, len(panels) == 1)
            else:
                axes.set_visible(False)
        if len(panels) > 1:
            figure.supylabel("accuracy under shift (%)", fontsize=7)
        note(figure, texts)
        legend.draw(figure, [handle(look) for look in looks.values()])
        return figure


def _panels(
    frame: pd.DataFrame, benchmarks: list[str], references: pd.DataFrame | None
) -> list[_Panel]:
    if frame.empty:
        return []
    runs = as_references(comparable(frame))
    cell_of = frame.drop_duplicates("run").set_index("run")["cell"]
    names = CLEAN if references is None or CLEAN[0] in references else CLEAN[1:]
    panels = []
    for name in benchmarks:
        measured = _pairs(runs, name, names)
        if measured.empty:
            continue
        measured["cell"] = measured["model"].map(cell_of)
        models, line = measured.iloc[:0], None
        if references is not None:
            models = _pairs(references, name, names)
            try:
                line = fit_line(models["clean"], models["shifted"])
            except UserError:  # too few models: they are drawn without a line
                line = None
        panels.append(_Panel(name, measured, models, line))
    return panels


def _left_out(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """A sentence for each reason why benchmarks that were measured have no panel."""
    reasons: dict[str, list[str]] = {}
    alike = set(comparable(frame)["benchmark"])
    for name in names:
        rows = frame[frame["benchmark"] == name]
        if rows.empty:
            continue
        if rows.loc[rows["metric"] == "top1", "value"].isna().all():
            why = "no number"
        elif name in alike:
            why = "no clean accuracy" + (" among its 200 classes" if name in AMONG_200 else "")
        elif (rows["metric"] == "ways").any():
            why = "other classes than published"
        else:
            why = "not known among how many classes"
        reasons.setdefault(why, []).append(name)
    return [f"Not drawn: {', '.join(named)} ({why})." for why, named in reasons.items()]


def _logit(percent: ArrayLike) -> NDArray[np.float64]:
    edge = 0.5 / PICTURES
    share = np.clip(np.asarray(percent, dtype=float) / 100, edge, 1 - edge)
    return np.log(share / (1 - share))


def _percent(logit: ArrayLike) -> NDArray[np.float64]:
    return 100 / (1 + np.exp(-np.asarray(logit, dtype=float)))


def _view(panel: _Panel) -> tuple[float, float, float, float]:
    """What a panel holds in percent, left, right, below, above: the cells, and so much of the
    models that they are not lost in a span as wide as that of all models."""
    means = panel.runs.groupby("cell")[["clean", "shifted"]].mean()
    least = LEAST_SPAN_MODELS if len(panel.models) else LEAST_SPAN
    sides = []
    for column in ("clean", "shifted"):
        held = _logit(pd.concat([means[column], panel.runs[column]]))
        sides.append(_span(held.min(), held.max(), least))
    (left, right), (below, above) = sides
    near = _inside(panel.models, tuple(_percent([left, right, below, above])))
    if len(panel.models) and not near.any():  # the cells are far from all models: show how far
        x, y = _logit(panel.models["clean"]), _logit(panel.models["shifted"])
        left, right = _span(min(left, x.min()), max(right, x.max()), least)
        below, above = _span(min(below, y.min()), max(above, y.max()), least)
    return tuple(_percent([left, right, below, above]))


def _span(low: float, high: float, least: float) -> tuple[float, float]:
    half = max(1.16 * (high - low), least) / 2
    return (low + high) / 2 - half, (low + high) / 2 + half


def _inside(models: pd.DataFrame, view: tuple[float, ...]) -> pd.Series:
    left, right, below, above = view
    return models["clean"].between(left, right) & models["shifted"].between(below, above)


def _draw(
    axes: Axes, panel: _Panel, view: tuple[float, ...], looks: dict[str, Look], alone: bool
) -> None:
    left, right, below, above = view
    axes.set_xscale("function", functions=(_logit, _percent))
    axes.set_yscale("function", functions=(_logit, _percent))
    axes.set(xlim=(left, right), ylim=(below, above))
    _ticks(axes, 6 if alone else 4)
    bare(axes)
    axes.grid(color="#ececec", linewidth=0.5)
    x = _percent(np.linspace(*_logit([left, right]), 50))
    if panel.line is not None:
        axes.plot(x, panel.line.predict(x), color=FAINT, linewidth=0.8, zorder=2)
    else:
        axes.plot(x, x, color=FAINT, linewidth=0.6, linestyle=(0, (1, 2)), zorder=2)
    axes.plot(
        panel.models["clean"], panel.models["shifted"], linestyle="", marker="x", markersize=2.6,
        markeredgecolor=FAINT, markeredgewidth=0.6, alpha=0.7, zorder=2,
    )  # fmt: skip
    for cell, rows in panel.runs.groupby("cell", sort=False):
        _draw_cell(axes, rows, looks.get(str(cell)))
    clean = "clean, same 200 classes (%)" if panel.name in AMONG_200 else "clean accuracy (%)"
    axes.set_xlabel(clean, labelpad=1.5)
    if alone:
        axes.set_ylabel(f"accuracy on {wrapped(panel.name, 24)} (%)")
    else:
        axes.set_title(wrapped(panel.name, 22), loc="left", pad=3)


def _draw_cell(axes: Axes, rows: pd.DataFrame, look: Look | None) -> None:
    """The mean over seeds, and the seeds as dots."""
    mean = rows[["clean", "shifted"]].mean()
    if look is None:
        axes.plot(
            [mean["clean"]], [mean["shifted"]], linestyle="", marker="o", markersize=3.2,
            markerfacecolor="none", markeredgecolor=FAINT, markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
        return
    if len(rows) > 1:
        axes.plot(
            rows["clean"], rows["shifted"], linestyle="", marker=".", markersize=2.4,
            markerfacecolor=look.color, markeredgewidth=0, alpha=0.7, zorder=4,
        )  # fmt: skip
    axes.plot(
        [mean["clean"]], [mean["shifted"]], linestyle="", marker=look.marker, markersize=4.6,
        markerfacecolor=look.color, markeredgecolor="white", markeredgewidth=0.5, zorder=5,
    )  # fmt: skip


def _ticks(axes: Axes, most: int) -> None:
    for axis, (low, high) in (
        (axes.xaxis, axes.get_xlim()),
        (axes.yaxis, axes.get_ylim()),
    ):
        axis.set_major_locator(FixedLocator(ticks_between(low, high, most)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def ticks_between(low: float, high: float, most: int) -> list[float]:
    """Round percentages on a logit axis, none closer to its neighbour than a share of 1/(most + 1)
    of the axis."""
    inside = [tick for tick in _TICKS if low <= tick <= high]
    if len(inside) < 3:
        inside = [
            float(v)
            for v in MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high)
            if low <= v <= high
        ]
    least = float(np.diff(_logit([low, high]))[0]) / (most + 1)
    kept: list[float] = []
    for tick in inside:
        if not kept or _logit(tick) - _logit(kept[-1]) >= least:
            kept.append(tick)
    return kept


def _notes(
    panels: list[_Panel], views: list[tuple[float, ...]], total: int, drawn: int, looks: int
) -> list[str]:
    texts = ["Marker: mean over seeds (dots). Both axes are logit scales."]
    lines = [panel.line for panel in panels]
    if any(len(panel.models) for panel in panels):
        texts.append("Crosses: reference models" + (" with their line." if any(lines) else "."))
        outside = max(
            len(panel.models) - int(_inside(panel.models, view).sum())
            for panel, view in zip(panels, views, strict=True)
        )
        if outside:
            texts.append(f"Up to {outside} of them lie outside a panel.")
    free = [view for panel, view in zip(panels, views, strict=True) if panel.line is None]
    if free:
        seen = any(max(view[0], view[2]) < min(view[1], view[3]) for view in free)
        texts.append("Dotted: y = x." if seen else "No line: y = x lies outside.")
    if drawn > looks:
        texts.append(f"Circles: {drawn - looks} other cells.")
    if total > drawn:
        texts.append(f"{total - drawn} of {total} cells have no number to show.")
    return texts
