"""Learning curves: a metric over training, the mean over seeds with a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import t

from densevit.results.figures.layout import despine
from densevit.results.figures.legend import Legend, handle, note, note_height
from densevit.results.figures.style import (
    COLUMN,
    MOST_STYLES,
    REST,
    Style,
    assign_styles,
    labels_of,
    new_figure,
    styled,
    wrapped,
)

MOST_POINTS = 200  # per curve; beyond it, neighboring steps are averaged
LEAST_SEEDS = 3  # for a t interval; with fewer, the band is their range
_LOW_IS_GOOD = ("loss", "nll", "ece")

Numbers = NDArray[np.float64]


class Curve(NamedTuple):
    """A metric of one cell over training; all arrays but `broken` are (P,).

    Mean, standard deviation, lowest and highest value are over the `left` seeds that still have
    values; `seeds` is their initial number. `broken` (B, 2) holds epoch and value of seeds before
    they became non-finite.
    """

    epoch: Numbers
    mean: Numbers
    std: Numbers
    low: Numbers
    high: Numbers
    left: Numbers
    seeds: int
    broken: Numbers

    def band(self, interval: bool) -> tuple[Numbers, Numbers]:
        """Return the 95 % t interval of the mean (Student), or the range of the seeds."""
        if not interval:
            return self.low, self.high
        with np.errstate(invalid="ignore", divide="ignore"):
            half = t.ppf(0.975, self.left - 1) * self.std / np.sqrt(self.left)
        return self.mean - half, self.mean + half


def learning_curves(
    curves: pd.DataFrame,
    cells: pd.DataFrame,
    name: str = "val/top1",
    label: str | None = None,
) -> Figure | None:
    """Draw a metric of each cell over training; return None if no run has logged it.

    `curves` is `collect.curves`, `cells` is `cells_frame`, `label` is the label of the y-axis. The
    band is the 95 % t interval of the mean if every cell with more than one seed has three, else
    the range of the seeds; a note names it. Where seeds have ended early, line and band are of the
    remaining ones, and faint. A cross is a seed's last value before it became non-finite, an arrow
    at an edge a line that leaves the figure. Of more than six cells, the six that are best at the
    end have a style; the others are gray lines. A seed is interpolated linearly between its logged
    steps; more than `MOST_POINTS` steps are averaged.
    """
    found = curves_by_cell(curves, cells, name)
    if not found:
        return None
    order = [cell for cell in cells["cell"] if cell in found]
    best = ranked(found, order, low_is_good=name.endswith(_LOW_IS_GOOD))
    styles = assign_styles(order, best)
    labels = labels_of(cells)
    legend = Legend([_legend_label(labels[cell], found[cell]) for cell in styles])
    interval, texts = band_notes([found[cell] for cell in styles])
    texts += other_cells_notes(cells, found, styles, "the best at the end")
    with styled():
        figure = new_figure(COLUMN, 2.1 + legend.height + note_height(texts))
        axes = figure.add_subplot()
        draw_curves(axes, found, styles, interval)
        axes.set_xlabel("epoch")
        axes.set_ylabel(wrapped(label or _TITLES.get(name, name), 38))
        note(figure, texts)
        legend.draw(figure, [handle(style, line=True) for style in styles.values()])
        return figure


_TITLES = {
    "val/top1": "top-1 accuracy on val (%)",
    "val/map": "mAP on val (%)",
    "train/loss": "loss in training",
    "val/loss": "loss on val",
}


def curves_by_cell(curves: pd.DataFrame, cells: pd.DataFrame, name: str) -> dict[str, Curve]:
    """Return the curve of a metric by cell id, for each of these cells that has logged it."""
    rows = curves[(curves["name"] == name) & curves["cell"].isin(cells["cell"])]
    return {str(cell): _curve(part) for cell, part in rows.groupby("cell", sort=False)}


def _curve(rows: pd.DataFrame) -> Curve:
    epochs = rows.groupby("step")["epoch"].mean()
    steps, x = epochs.index.to_numpy(), epochs.to_numpy(dtype=float)
    seeds = [_interpolated(steps, x, part) for _, part in rows.sort_values("step").groupby("run")]
    values = np.column_stack([values for values, _ in seeds])
    broken = np.array([point for _, point in seeds if point is not None]).reshape(-1, 2)
    every = math.ceil(len(x) / MOST_POINTS)
    starts = np.arange(0, len(x), every)
    counts = np.add.reduceat(np.isfinite(values).astype(float), starts)
    sums = np.add.reduceat(np.nan_to_num(values), starts)
    binned = np.divide(sums, counts, out=np.full_like(sums, math.nan), where=counts > 0)
    by_point = pd.DataFrame(binned.T)
    return Curve(
        np.add.reduceat(x, starts) / np.diff([*starts, len(x)]),
        by_point.mean().to_numpy(), by_point.std().to_numpy(), by_point.min().to_numpy(),
        by_point.max().to_numpy(), by_point.count().to_numpy(dtype=float), len(seeds), broken,
    )  # fmt: skip


def _interpolated(
    steps: NDArray[np.int64], x: Numbers, rows: pd.DataFrame
) -> tuple[Numbers, tuple[float, float] | None]:
    """Return a seed's values at these steps, and the point before its first non-finite value.

    Values are NaN before the seed's first step and after its last. The point is (epoch, value).
    """
    values = rows["value"].to_numpy(dtype=float)
    own, finite = rows["step"].to_numpy(), np.isfinite(values)
    if not finite.any():
        return np.full(len(steps), math.nan), None
    found = np.interp(steps, own[finite], values[finite], left=math.nan, right=math.nan)
    bad = np.isin(steps, own[~finite])
    found[bad] = math.nan  # logged non-finite values are not interpolated
    before = np.flatnonzero(np.isfinite(found[: bad.argmax()])) if bad.any() else np.array([], int)
    if not len(before):
        return found, None
    last = before[-1]
    return found, (float(x[last]), float(found[last]))


def ranked(
    found: Mapping[str, Curve], order: Sequence[str], *, low_is_good: bool = False
) -> list[str]:
    """Return cells by their last mean, the best first."""

    def last(cell: str) -> float:
        means = found[cell].mean[np.isfinite(found[cell].mean)]
        return math.inf if not len(means) else means[-1] if low_is_good else -means[-1]

    return sorted(order, key=last)


def draw_curves(
    axes: Axes, found: Mapping[str, Curve], styles: Mapping[str, Style], interval: bool
) -> None:
    """Draw the cells that have a style, with their bands, over the others."""
    despine(axes)
    axes.grid(color="#ececec", linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    for cell, curve in found.items():
        if cell not in styles:
            axes.plot(curve.epoch, curve.mean, color=REST, linewidth=0.6, alpha=0.6, zorder=1)
    for place, (cell, style) in enumerate(styles.items()):
        if cell in found:
            _draw_curve(axes, found[cell], style, interval, place)
    low, high = _limits(found, styles, interval)
    axes.set_ylim(low, high)
    for cell, style in styles.items():
        if cell in found:
            _mark_cut(axes, found[cell], style, low, high)
    ends = [e for c in found.values() for e in (c.epoch.min(), c.epoch.max())]
    if ends and max(ends) > min(ends):
        axes.set_xlim(min(ends), max(ends) + 0.01 * (max(ends) - min(ends)))


def _draw_curve(axes: Axes, curve: Curve, style: Style, interval: bool, place: int) -> None:
    whole = curve.left == curve.seeds
    # The faint part begins where the complete one ends, so that the line has no gap.
    rest = ~whole
    rest[:-1] |= ~whole[1:]
    rest[1:] |= ~whole[:-1]
    low, high = curve.band(interval)
    for part, line_alpha, alpha in ((whole, 1.0, 0.2), (rest, 0.45, 0.09)):
        if not part.any():
            continue
        axes.fill_between(
            curve.epoch, low, high, where=part & (curve.left > 1), color=style.color, alpha=alpha,
            linewidth=0, zorder=2,
        )  # fmt: skip
        points = np.isfinite(curve.mean) & part
        every = max(1, math.ceil(points.sum() / 6))
        axes.plot(
            curve.epoch, np.where(part, curve.mean, math.nan), color=style.color, linewidth=1.1,
            linestyle=style.dashes, alpha=line_alpha, zorder=3, marker=style.marker, markersize=3.2,
            markeredgewidth=0, markevery=_some(points, every, place),
        )  # fmt: skip
    if len(curve.broken):
        axes.add_line(
            Line2D(*curve.broken.T, color=style.color, linestyle="", marker="x", markersize=5,
                   markeredgewidth=1.2, zorder=5, clip_on=False)
        )  # fmt: skip


def _mark_cut(axes: Axes, curve: Curve, style: Style, low: float, high: float) -> None:
    """Draw an arrow at the edge wherever a line leaves the axes."""
    for beyond, edge, arrow in ((curve.mean > high, high, "^"), (curve.mean < low, low, "v")):
        leaves = np.flatnonzero(beyond & ~np.append(False, beyond[:-1]))
        if len(leaves):
            axes.plot(
                curve.epoch[leaves], [edge] * len(leaves), linestyle="", marker=arrow,
                markersize=6, color=style.color, markeredgewidth=0, zorder=5,
            )  # fmt: skip


def _some(points: NDArray[np.bool_], every: int, place: int) -> list[int]:
    """Return indices of a few points, different for each cell so that markers do not overlap."""
    places = np.flatnonzero(points)
    if not len(places):
        return []
    offset = (place * every // MOST_STYLES + every // 2) % every
    return [int(i) for i in places[offset::every]]


def _limits(
    found: Mapping[str, Curve], styles: Mapping[str, Style], interval: bool
) -> tuple[float, float]:
    """Return y limits that hold means and complete bands, but not the end of a diverging run."""
    means = np.concatenate([curve.mean for curve in found.values()] or [np.zeros(1)])
    means = means[np.isfinite(means)]
    if not len(means):
        return 0.0, 1.0
    ends = [means]
    for cell in styles:
        if cell in found:
            whole = found[cell].left == found[cell].seeds
            ends += [end[whole & np.isfinite(end)] for end in found[cell].band(interval)]
    low = np.quantile(means, 0.02, method="higher")
    high = np.quantile(means, 0.98, method="lower")
    every, slack = np.concatenate(ends), max(high - low, 1e-9)
    low, high = max(low - slack, every.min()), min(high + slack, every.max())
    edge = 0.04 * (high - low) or 0.5
    return low - edge, high + edge


def band_notes(drawn: Sequence[Curve]) -> tuple[bool, list[str]]:
    """Return True if bands are t intervals, and sentences that explain the marks in the figure."""
    several = [curve.seeds for curve in drawn if curve.seeds > 1]
    interval = bool(several) and min(several) >= LEAST_SEEDS
    texts = []
    if several:
        kind = "95 % t interval of the mean" if interval else "from the lowest to the highest seed"
        texts.append(f"Band: {kind}.")
    if any((curve.left < curve.seeds).any() for curve in drawn):
        texts.append("Faint: some seeds have ended.")
    if any(len(curve.broken) for curve in drawn):
        texts.append("×: the last finite value of a seed.")
    return interval, texts


def other_cells_notes(
    cells: pd.DataFrame, found: Mapping[str, Curve], styles: Mapping[str, Style], best: str
) -> list[str]:
    """Return sentences on cells without a style and without logs; `best` describes the others."""
    logged = [cell for cell in cells["cell"] if cell in found]
    others = [cell for cell in logged if cell not in styles]
    texts = []
    if others:
        texts.append(f"Gray: {len(others)} other cells, not among {best}.")
    if len(logged) < len(cells):
        texts.append(f"Not yet logged by {len(cells) - len(logged)} of {len(cells)} cells.")
    return texts


def _legend_label(label: str, curve: Curve) -> str:
    """Return a cell's label, which explains a missing line."""
    return label if np.isfinite(curve.mean).any() else f"{label} (not a number)"
