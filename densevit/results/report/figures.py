"""The figures of a report, with their captions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from densevit.config.evaluation_names import CLEAN
from densevit.results.analysis import Findings, leveled_axes
from densevit.results.figures.accuracy import accuracy
from densevit.results.figures.cost import cost
from densevit.results.figures.curves import learning_curves
from densevit.results.figures.effects import marginal
from densevit.results.figures.feature_health import DRAWN, health
from densevit.results.figures.forest import forest
from densevit.results.figures.heatmap import heat
from densevit.results.figures.pareto import pareto
from densevit.results.figures.robustness import shift
from densevit.results.figures.style import save
from densevit.results.report import html
from densevit.results.report.document import FigureBlock
from densevit.results.stats.ranking import image_rows
from densevit.results.tables.main_table import CellTable

CURVES = ("val/top1", "val/map", "train/loss", *DRAWN)
NOT_IN_NAMES = r"[^A-Za-z0-9._-]"  # of files: results may name a test set after a path
MOST_SHIFTED = 6  # test sets in a figure


class ReportFigure(NamedTuple):
    """A figure of a report; `draw` returns None if there is nothing to draw."""

    section: str
    name: str
    alt: str
    caption: str
    draw: Callable[[], Figure | None]


def draw_all(found: Findings, table: CellTable, folder: Path) -> dict[str, list[FigureBlock]]:
    """Write every figure that has data as PNG and PDF in `folder`; return them by section.

    Remove the files of figures without data, and heat maps of test sets that are no longer there.
    """
    blocks: dict[str, list[FigureBlock]] = {}
    stale = set(folder.glob("heat-*.p*"))
    for figure in list_figures(found, table):
        png, pdf = folder / f"{figure.name}.png", folder / f"{figure.name}.pdf"
        drawn = figure.draw()
        if drawn is None:
            stale |= {png, pdf}
            continue
        stale -= {png, pdf}
        save(drawn, png, pdf)
        block = FigureBlock(png.name, *html.embedded(png), figure.alt, figure.caption, pdf.name)
        blocks.setdefault(figure.section, []).append(block)
    for file in stale:
        file.unlink(missing_ok=True)
    return blocks


def list_figures(found: Findings, table: CellTable) -> Iterator[ReportFigure]:
    """Yield every figure, for the cells of the main `table`."""
    ids = set(found.shown)
    cells = found.cells[found.cells["cell"].isin(ids)].reset_index(drop=True)
    frame = found.frame[found.frame["cell"].isin(ids)]
    yield ReportFigure(
        "accuracy", "accuracy", "Mean accuracy of each cell on each test set, with single seeds.",
        "Marker: mean; bar: ± standard deviation over the seeds; ticks below: "
        "single seeds. The axis may start above zero; a point is equally long in all panels.",
        partial(accuracy, table, frame),
    )  # fmt: skip
    differences = found.differences[found.differences["cell"].isin(ids)]
    # With several axes, the names repeat the settings that both cells share.
    names = dict(found.names) if len(found.plan.axes) == 1 else None
    yield ReportFigure(
        "accuracy", "differences", "Difference of each cell from its baseline on each test set, "
        "with intervals; the numbers are in the table of differences.",
        "Difference in accuracy from the baseline, paired by seed. Bar: 95 % t interval. "
        "Filled: p < 0.05 after Holm's correction for all comparisons. Shaded: differences within "
        f"±{found.smallest_effect:g}.",
        partial(forest, differences, cells, smallest_effect=found.smallest_effect, names=names),
    )  # fmt: skip
    yield from _effects(found)
    yield from _robustness(found, frame, cells)
    yield from _learning(found, cells)
    costs = found.costs[found.costs["cell"].isin(ids)]
    clean = image_rows(frame)
    clean = clean[clean["benchmark"].isin(CLEAN)]
    benchmark = next((name for name in CLEAN if (clean["benchmark"] == name).any()), "val")
    yield ReportFigure(
        "cost", "cost", "Time of a step by its phases, peak memory and accuracy of each cell.",
        f"Time of a training step by phase, peak memory, and accuracy on {benchmark}: means "
        "over the runs of a cell.",
        partial(cost, costs, clean, cells, benchmark=benchmark),
    )  # fmt: skip
    yield ReportFigure(
        "cost", "pareto", "Accuracy of each cell against the GPU-hours of a run.",
        f"Accuracy on {benchmark} against the GPU-hours of a run: the mean of a cell, and "
        "its seeds as dots. The line joins the cells that no other one beats in both.",
        partial(pareto, costs, clean, cells, benchmark=benchmark),
    )  # fmt: skip


def _effects(found: Findings) -> Iterator[ReportFigure]:
    """Yield figures of effects and heat maps; heat maps need two axes."""
    yield ReportFigure(
        "effects", "effects", "The effect of each level of each axis, with intervals; the numbers "
        "are in the table above.",
        "Difference of each level from the reference level of its axis, averaged over the settings "
        "of all other axes. Bar: 95 % interval. Filled: p < 0.05 after Holm's correction for all "
        "of these.",
        partial(marginal, found.marginals, smallest_effect=found.smallest_effect),
    )  # fmt: skip
    if len(found.plan.axes) < 2:
        return
    measured = image_rows(found.frame)
    present = set(measured["benchmark"])
    rows, columns = leading_axes(found)
    clean = [name for name in CLEAN if name in present][:1]
    for benchmark in [*clean, *found.shifted[:1]]:
        yield ReportFigure(
            "effects", f"heat-{re.sub(NOT_IN_NAMES, '_', benchmark)}",
            f"Mean accuracy on {benchmark} for each pair of {rows} and {columns}.",
            f"Accuracy (%) on {benchmark} by {rows} and {columns}: the mean over the seeds.",
            partial(heat, measured, found.cells, rows, columns, benchmark),
        )  # fmt: skip


def leading_axes(found: Findings) -> tuple[str, str]:
    """Return the two axes that explain most variance, in plan order; the first two if unknown."""
    leveled = leveled_axes(found.cells, found.plan.axes)
    axes = leveled if len(leveled) > 1 else list(found.plan.axes)
    if len(found.shares):
        total = found.shares.groupby("source")["share"].sum()
        largest = sorted(axes, key=lambda axis: -total.get(axis, 0.0))[:2]
        axes = [axis for axis in axes if axis in largest]
    return axes[0], axes[1]


def _robustness(
    found: Findings, frame: pd.DataFrame, cells: pd.DataFrame
) -> Iterator[ReportFigure]:
    benchmarks, more = found.shifted[:MOST_SHIFTED], found.shifted[MOST_SHIFTED:]
    yield ReportFigure(
        "robustness", "robustness", "Accuracy under shift against clean accuracy of each cell, "
        "with reference models.",
        "Accuracy under shift against clean accuracy, on logit scales. Marker: mean of a cell; "
        "small dots: single seeds; gray crosses: reference models, with a line through them. "
        "Without reference models, the line is that of equal accuracy."
        + (f" The first {MOST_SHIFTED} of {len(found.shifted)} test sets." if more else ""),
        partial(shift, frame, cells, benchmarks, found.references),
    )  # fmt: skip


def _learning(found: Findings, cells: pd.DataFrame) -> Iterator[ReportFigure]:
    """Yield the figures of learning curves and feature health."""
    band = "Line: mean over the seeds; the figure states what the band is."
    scales = (
        " Losses of other modes, weights or queue sizes have other scales: compare val instead."
    )
    for name, title, more in (
        ("val/top1", "Top-1 accuracy on val (%)", ""), ("val/map", "mAP on val (%)", ""),
        ("train/loss", "Loss", scales if len(cells) > 1 else ""),
    ):  # fmt: skip
        yield ReportFigure(
            "learning", f"course-{name.replace('/', '-')}",
            f"{title} over training, one line per cell.", f"{title} over training. {band}{more}",
            partial(learning_curves, found.curves, cells, name),
        )  # fmt: skip
    yield ReportFigure(
        "learning", "health", "Effective rank, precision of matches, similarities and clipping "
        "over training, one line per cell.",
        "Health of the features over training: effective rank, precision of patch matches, "
        f"cosine similarities, norm and clipping of the gradient. {band}",
        partial(health, found.curves, cells),
    )  # fmt: skip
