"""Learning curves: a number over training, the mean over seeds with a band."""

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

from densevit.results.figures.style import (
    COLUMN,
    LOOKS,
    MOST_LOOKS,
    REST,
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

MOST_POINTS = 200  # along a curve: neighbouring steps of more are averaged
LEAST_SEEDS = 3  # for a t interval; of fewer the band goes from the lowest to the highest
_LOW_IS_GOOD = ("loss", "nll", "ece")

Numbers = NDArray[np.float64]


class Course(NamedTuple):
    """A number of one cell over training, (P,) each: epoch, mean over the seeds that are left,
    their standard deviation, lowest and highest value, and how many they are; `seeds` is how many
    there were. `broken` (B, 2) are epoch and value of seeds before they stopped being numbers."""

    epoch: Numbers
    mean: Numbers
    std: Numbers
    low: Numbers
    high: Numbers
    left: Numbers
    seeds: int
    broken: Numbers

    def band(self, interval: bool) -> tuple[Numbers, Numbers]:
        """The 95 % t interval of the mean (Student), or from the lowest to the highest seed."""
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
    *,
    shown: Sequence[str] = (),
) -> Figure | None:
    """A number of each cell over training; None if no run has logged it.

    `curves` is `collect.curves`, `cells` is `cells_frame`, `label` what stands at the axis. The
    band is the 95 % t interval of the mean if every cell with more than one seed has three, else
    it goes from the lowest to the highest seed; a note says which. Where seeds have ended early,
    line and band are of those left, and faint. A cross is a seed's last value before it was not a
    number. Of more than six cells, six have a look (`shown`, or those best at the end) and the
    others are grey lines. Between its logged steps a seed lies on a straight line; more than
    `MOST_POINTS` steps are averaged.
    """
    found = courses(curves, cells, name)
    if not found:
        return None
    order = [cell for cell in cells["cell"] if cell in found]
    best = ranked(found, order, low_is_good=name.endswith(_LOW_IS_GOOD))
    looks = dict(zip(picked(order, best, shown), LOOKS, strict=False))
    labels = labels_of(cells)
    legend = Legend([_told(labels[cell], found[cell]) for cell in looks])
    interval, texts = told_band([found[cell] for cell in looks])
    texts += told_rest(cells, found, looks, "" if shown else "the best at the end")
    with styled():
        figure = new_figure(COLUMN, 2.1 + legend.height + note_height(texts))
        axes = figure.add_subplot()
        draw_courses(axes, found, looks, interval)
        axes.set_xlabel("epoch")
        axes.set_ylabel(wrapped(label or _TITLES.get(name, name), 38))
        note(figure, texts)
        legend.draw(figure, [handle(look, line=True) for look in looks.values()])
        return figure


_TITLES = {
    "val/top1": "top-1 accuracy on val (%)",
    "train/loss": "loss in training",
    "val/loss": "loss on val",
}


def courses(curves: pd.DataFrame, cells: pd.DataFrame, name: str) -> dict[str, Course]:
    """The course of a number by cell id, of each of these cells that has logged it."""
    rows = curves[(curves["name"] == name) & curves["cell"].isin(cells["cell"])]
    return {str(cell): _course(part) for cell, part in rows.groupby("cell", sort=False)}


def _course(rows: pd.DataFrame) -> Course:
    epochs = rows.groupby("step")["epoch"].mean()
    steps, x = epochs.index.to_numpy(), epochs.to_numpy(dtype=float)
    seeds = [_along(steps, x, part) for _, part in rows.sort_values("step").groupby("run")]
    values = np.column_stack([values for values, _ in seeds])
    broken = np.array([point for _, point in seeds if point is not None]).reshape(-1, 2)
    every = math.ceil(len(x) / MOST_POINTS)
    starts = np.arange(0, len(x), every)
    counts = np.add.reduceat(np.isfinite(values).astype(float), starts)
    sums = np.add.reduceat(np.nan_to_num(values), starts)
    binned = np.divide(sums, counts, out=np.full_like(sums, math.nan), where=counts > 0)
    by_point = pd.DataFrame(binned.T)
    return Course(
        np.add.reduceat(x, starts) / np.diff([*starts, len(x)]),
        by_point.mean().to_numpy(), by_point.std().to_numpy(), by_point.min().to_numpy(),
        by_point.max().to_numpy(), by_point.count().to_numpy(dtype=float), len(seeds), broken,
    )  # fmt: skip


def _along(
    steps: NDArray[np.int64], x: Numbers, rows: pd.DataFrame
) -> tuple[Numbers, tuple[float, float] | None]:
    """A seed's values at these steps, NaN before its first and after its last; and where it was
    (epoch, value) before it was no number for the first time."""
    values = rows["value"].to_numpy(dtype=float)
    own, finite = rows["step"].to_numpy(), np.isfinite(values)
    if not finite.any():
        return np.full(len(steps), math.nan), None
    found = np.interp(steps, own[finite], values[finite], left=math.nan, right=math.nan)
    bad = np.isin(steps, own[~finite])
    found[bad] = math.nan  # what was logged and is no number is not bridged
    before = np.flatnonzero(np.isfinite(found[: bad.argmax()])) if bad.any() else ()
    return found, (x[before[-1]], found[before[-1]]) if len(before) else None


def ranked(
    found: Mapping[str, Course], order: Sequence[str], *, low_is_good: bool = False
) -> list[str]:
    """Cells by their last mean, the best first."""

    def last(cell: str) -> float:
        means = found[cell].mean[np.isfinite(found[cell].mean)]
        return math.inf if not len(means) else means[-1] if low_is_good else -means[-1]

    return sorted(order, key=last)


def draw_courses(
    axes: Axes, found: Mapping[str, Course], looks: Mapping[str, Look], interval: bool
) -> None:
    """Draw the cells that have a look with their bands over the others."""
    bare(axes)
    axes.grid(color="#ececec", linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    for cell, course in found.items():
        if cell not in looks:
            axes.plot(course.epoch, course.mean, color=REST, linewidth=0.6, alpha=0.6, zorder=1)
    for place, (cell, look) in enumerate(looks.items()):
        if cell in found:
            _draw_course(axes, found[cell], look, interval, place)
    low, high = _limits(found, looks, interval)
    axes.set_ylim(low, high)
    ends = [e for c in found.values() for e in (c.epoch.min(), c.epoch.max())]
    if ends and max(ends) > min(ends):
        axes.set_xlim(min(ends), max(ends) + 0.01 * (max(ends) - min(ends)))


def _draw_course(axes: Axes, course: Course, look: Look, interval: bool, place: int) -> None:
    whole = course.left == course.seeds
    # The faint part begins where the whole one ends, so that the line has no gap.
    rest = ~whole
    rest[:-1] |= ~whole[1:]
    rest[1:] |= ~whole[:-1]
    low, high = course.band(interval)
    for part, line_alpha, alpha in ((whole, 1.0, 0.2), (rest, 0.45, 0.09)):
        if not part.any():
            continue
        axes.fill_between(
            course.epoch, low, high, where=part & (course.left > 1), color=look.color, alpha=alpha,
            linewidth=0, zorder=2,
        )  # fmt: skip
        points = np.isfinite(course.mean) & part
        every = max(1, math.ceil(points.sum() / 6))
        axes.plot(
            course.epoch, np.where(part, course.mean, math.nan), color=look.color, linewidth=1.1,
            linestyle=look.dashes, alpha=line_alpha, zorder=3, marker=look.marker, markersize=3.2,
            markeredgewidth=0, markevery=_some(points, every, place),
        )  # fmt: skip
    if len(course.broken):
        axes.add_line(
            Line2D(*course.broken.T, color=look.color, linestyle="", marker="x", markersize=5,
                   markeredgewidth=1.2, zorder=5, clip_on=False)
        )  # fmt: skip


def _some(points: NDArray[np.bool_], every: int, place: int) -> list[int]:
    """Indices of a few points, others for each cell, so that markers do not hide each other."""
    places = np.flatnonzero(points)
    if not len(places):
        return []
    offset = (place * every // MOST_LOOKS + every // 2) % every
    return [int(i) for i in places[offset::every]]


def _limits(
    found: Mapping[str, Course], looks: Mapping[str, Look], interval: bool
) -> tuple[float, float]:
    """All means and the bands of whole cells, but not what a diverging run does at its end."""
    means = np.concatenate([course.mean for course in found.values()] or [np.zeros(1)])
    means = means[np.isfinite(means)]
    if not len(means):
        return 0.0, 1.0
    ends = [means]
    for cell in looks:
        if cell in found:
            whole = found[cell].left == found[cell].seeds
            ends += [end[whole & np.isfinite(end)] for end in found[cell].band(interval)]
    low = np.quantile(means, 0.02, method="higher")
    high = np.quantile(means, 0.98, method="lower")
    every, slack = np.concatenate(ends), max(high - low, 1e-9)
    low, high = max(low - slack, every.min()), min(high + slack, every.max())
    edge = 0.04 * (high - low) or 0.5
    return low - edge, high + edge


def told_band(drawn: Sequence[Course]) -> tuple[bool, list[str]]:
    """Whether bands are t intervals, and the sentences that explain bands, faint parts, crosses."""
    several = [course.seeds for course in drawn if course.seeds > 1]
    interval = bool(several) and min(several) >= LEAST_SEEDS
    texts = []
    if several:
        kind = "95 % t interval of the mean" if interval else "from the lowest to the highest seed"
        texts.append(f"Band: {kind}.")
    if any((course.left < course.seeds).any() for course in drawn):
        texts.append("Faint: some seeds have ended.")
    if any(len(course.broken) for course in drawn):
        texts.append("×: a seed's last value before it was not a number.")
    return interval, texts


def told_rest(
    cells: pd.DataFrame, found: Mapping[str, Course], looks: Mapping[str, Look], best: str
) -> list[str]:
    """Sentences about the cells that have no look, and those that have logged nothing; `best` is
    what those with a look are, if it was not asked for them."""
    others = len([cell for cell in cells["cell"] if cell in found and cell not in looks])
    missing = len(cells) - len([cell for cell in cells["cell"] if cell in found])
    texts = []
    if others:
        which = f", not among {best}" if best else ""
        texts.append(f"Grey: {others} other cells{which}.")
    if missing:
        texts.append(f"Not yet logged by {missing} of {len(cells)} cells.")
    return texts


def _told(label: str, course: Course) -> str:
    """A cell in the legend, with what a missing line means."""
    return label if np.isfinite(course.mean).any() else f"{label} (not a number)"
