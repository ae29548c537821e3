"""Accuracy under shift against clean accuracy, with the line of reference models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from densevit.config.evaluation_names import CLEAN
from densevit.results.figures.layout import despine, draw_cell, panels
from densevit.results.figures.legend import Legend, handle, note, note_height
from densevit.results.figures.style import (
    COLUMN,
    FAINT,
    Style,
    assign_styles,
    labels_of,
    new_figure,
    styled,
    wrapped,
)
from densevit.results.stats.reference_models import AMONG_200
from densevit.results.stats.robustness import (
    IMAGES,
    Line,
    _pairs,
    as_references,
    comparable,
    fit_line,
)
from densevit.utils.errors import UserError

# In logits: 0.4 is 10 points around 50 %. Wider with models, to show their line.
LEAST_SPAN, LEAST_SPAN_MODELS = 0.4, 1.2
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)


Limits = tuple[float, float, float, float]  # in percent: left, right, below, above


class _Panel(NamedTuple):
    """A benchmark: the runs as cell, clean, shifted; the reference models; their line; limits."""

    name: str
    runs: pd.DataFrame
    models: pd.DataFrame
    line: Line | None
    limits: Limits


def shift(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    benchmarks: Sequence[str],
    references: pd.DataFrame | None = None,
) -> Figure | None:
    """Draw shifted against clean top-1 accuracy on logit scales, one panel per benchmark.

    Return None if no run has both. `frame` is that of `collect`, `cells` is `cells_frame`,
    `references` is `reference_models.read_references`. A cell is the mean of its seeds, which are
    small dots; reference models are gray crosses with their line. Only `comparable` runs are drawn;
    clean accuracy is that of `robustness.effective`. Without a line, y = x is drawn. Of more than
    six cells, the six that are best on the first benchmark have a style; the others are hollow
    circles. A panel holds the cells and the models near them. A run that lacks one of the two
    numbers has no dot. Notes count the reference models outside and the cells without a number, and
    give the reason why a measured benchmark has no panel.
    """
    frame = frame[frame["cell"].isin(cells["cell"])]
    drawn = _panels(frame, benchmarks, references)
    if not drawn:
        return None
    means = drawn[0].runs.groupby("cell", sort=False)["shifted"].mean()
    means = means.sort_values(ascending=False, kind="stable")
    with_number = {cell for panel in drawn for cell in panel.runs["cell"]}
    order = [cell for cell in cells["cell"] if cell in with_number]
    styles = assign_styles(order, list(means.index))
    labels = labels_of(cells)
    legend = Legend([labels[cell] for cell in styles])
    texts = _notes(drawn, len(cells), len(order), len(styles))
    texts += _left_out(frame, [name for name in benchmarks if name not in {p.name for p in drawn}])
    columns, alone = min(2, len(drawn)), len(drawn) == 1
    with styled():
        size = 2.6 if alone else 1.62 * math.ceil(len(drawn) / columns)
        figure = new_figure(COLUMN, size + legend.height + note_height(texts) + 0.2)
        for axes, panel in zip(panels(figure, len(drawn), columns), drawn, strict=True):
            _draw(axes, panel, styles, alone)
        if not alone:
            figure.supylabel("accuracy under shift (%)", fontsize=7)
        note(figure, texts)
        legend.draw(figure, [handle(style) for style in styles.values()])
        return figure


def _panels(
    frame: pd.DataFrame, benchmarks: Sequence[str], references: pd.DataFrame | None
) -> list[_Panel]:
    if frame.empty:
        return []
    runs = as_references(comparable(frame))
    cell_of = frame.drop_duplicates("run").set_index("run")["cell"]
    names = CLEAN if references is None or CLEAN[0] in references else CLEAN[1:]
    found = []
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
        found.append(_Panel(name, measured, models, line, _limits(measured, models)))
    return found


def _left_out(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Return a sentence for each reason why measured benchmarks have no panel."""
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
            why = "other classes than the published ones"
        else:
            why = "number of classes unknown"
        reasons.setdefault(why, []).append(name)
    return [f"Not drawn: {', '.join(named)} ({why})." for why, named in reasons.items()]


def _logit(percent: ArrayLike) -> NDArray[np.float64]:
    edge = 0.5 / IMAGES
    share = np.clip(np.asarray(percent, dtype=float) / 100, edge, 1 - edge)
    return np.asarray(np.log(share / (1 - share)))


def _percent(logit: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(100 / (1 + np.exp(-np.asarray(logit, dtype=float))))


def _limits(runs: pd.DataFrame, models: pd.DataFrame) -> Limits:
    """Return the limits of a panel.

    They hold the runs and the models nearby; in the span of all models, the runs would be lost.
    """
    least = LEAST_SPAN_MODELS if len(models) else LEAST_SPAN
    x, y = _logit(runs["clean"]), _logit(runs["shifted"])
    left, right = _span(x.min(), x.max(), least)
    below, above = _span(y.min(), y.max(), least)
    found = _in_percent(left, right, below, above)
    if len(models) and not _inside(models, found).any():  # far from all models: show how far
        x, y = _logit(models["clean"]), _logit(models["shifted"])
        left, right = _span(min(left, x.min()), max(right, x.max()), least)
        below, above = _span(min(below, y.min()), max(above, y.max()), least)
        found = _in_percent(left, right, below, above)
    return found


def _in_percent(left: float, right: float, below: float, above: float) -> Limits:
    left, right, below, above = _percent([left, right, below, above]).tolist()
    return left, right, below, above


def _span(low: float, high: float, least: float) -> tuple[float, float]:
    half = max(1.16 * (high - low), least) / 2
    return (low + high) / 2 - half, (low + high) / 2 + half


def _inside(models: pd.DataFrame, limits: Limits) -> pd.Series:
    left, right, below, above = limits
    return models["clean"].between(left, right) & models["shifted"].between(below, above)


def _draw(axes: Axes, panel: _Panel, styles: Mapping[str, Style], alone: bool) -> None:
    left, right, below, above = panel.limits
    axes.set_xscale("function", functions=(_logit, _percent))
    axes.set_yscale("function", functions=(_logit, _percent))
    axes.set(xlim=(left, right), ylim=(below, above))
    _ticks(axes, 6 if alone else 4)
    despine(axes)
    axes.grid(color="#ececec", linewidth=0.5)
    start, end = _logit([left, right]).tolist()
    x = _percent(np.linspace(start, end, 50))
    if panel.line is not None:
        axes.plot(x, panel.line.predict(x), color=FAINT, linewidth=0.8, zorder=2)
    else:
        axes.plot(x, x, color=FAINT, linewidth=0.6, linestyle=(0, (1, 2)), zorder=2)
    axes.plot(
        panel.models["clean"], panel.models["shifted"], linestyle="", marker="x", markersize=2.6,
        markeredgecolor=FAINT, markeredgewidth=0.6, alpha=0.7, zorder=2,
    )  # fmt: skip
    for cell, rows in panel.runs.groupby("cell", sort=False):
        draw_cell(axes, rows["clean"], rows["shifted"], styles.get(str(cell)))
    clean = "clean, same 200 classes (%)" if panel.name in AMONG_200 else "clean accuracy (%)"
    axes.set_xlabel(clean, labelpad=1.5)
    if alone:
        axes.set_ylabel(f"accuracy on {wrapped(panel.name, 24)} (%)")
    else:
        axes.set_title(wrapped(panel.name, 22), loc="left", pad=3)


def _ticks(axes: Axes, most: int) -> None:
    for axis, (low, high) in (
        (axes.xaxis, axes.get_xlim()),
        (axes.yaxis, axes.get_ylim()),
    ):
        axis.set_major_locator(FixedLocator(ticks_between(low, high, most)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def ticks_between(low: float, high: float, most: int) -> list[float]:
    """Return round percentages for a logit axis, at least 1/(most + 1) of the axis apart."""
    inside = [tick for tick in _TICKS if low <= tick <= high]
    if len(inside) < 3:
        inside = [
            float(v)
            for v in MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high)
            if low <= v <= high
        ]
    least = float(np.diff(_logit([low, high]))[0]) / (most + 1)
    ticks: list[float] = []
    for tick in inside:
        if not ticks or _logit(tick) - _logit(ticks[-1]) >= least:
            ticks.append(tick)
    return ticks


def _notes(panels: Sequence[_Panel], total: int, drawn: int, styles: int) -> list[str]:
    texts = ["Marker: mean over seeds (dots). Both axes are logit scales."]
    if any(len(panel.models) for panel in panels):
        lines = any(panel.line for panel in panels)
        texts.append("Crosses: reference models" + (" with their line." if lines else "."))
        outside = max(int((~_inside(panel.models, panel.limits)).sum()) for panel in panels)
        if outside:
            texts.append(f"Up to {outside} of them lie outside a panel.")
    without_line = [panel.limits for panel in panels if panel.line is None]
    if without_line:
        visible = any(
            max(left, below) < min(right, above) for left, right, below, above in without_line
        )
        texts.append("Dotted: y = x." if visible else "No line: y = x lies outside.")
    if drawn > styles:
        texts.append(f"Circles: {drawn - styles} other cells.")
    if total > drawn:
        texts.append(f"{total - drawn} of {total} cells have no number to show.")
    return texts
