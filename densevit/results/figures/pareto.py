"""Accuracy against the GPU-hours that it cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from densevit.results.figures.layout import despine, draw_cell
from densevit.results.figures.legend import Legend, handle, note, note_height
from densevit.results.figures.style import (
    COLUMN,
    FAINT,
    assign_styles,
    labels_of,
    literal,
    new_figure,
    styled,
)
from densevit.results.stats.ranking import image_metric, image_rows
from densevit.results.tables.format import metric_title


def pareto(
    costs: pd.DataFrame, frame: pd.DataFrame, cells: pd.DataFrame, *, benchmark: str = "val"
) -> Figure | None:
    """Draw accuracy against GPU-hours, and the Pareto front of the cells.

    Return None if fewer than two cells have both. `costs` is `collect.costs`, `frame` that of
    `collect`, `cells` is `cells_frame`. A cell is the mean of its seeds, which are small dots. Of
    more than six cells, the six most accurate have a style; the others are hollow circles.
    """
    runs = _runs(costs, frame, benchmark)
    means = runs.groupby("cell")[["gpu_hours", "accuracy"]].mean()
    if len(means) < 2:
        return None
    order = [cell for cell in cells["cell"] if cell in means.index]
    best = list(means["accuracy"][order].sort_values(ascending=False, kind="stable").index)
    styles, labels = assign_styles(order, best), labels_of(cells)
    legend = Legend([labels[cell] for cell in styles])
    texts = ["Marker: mean over seeds (dots). Line: no cell is cheaper and at least as accurate."]
    if len(order) > len(styles):
        texts.append(f"Circles: {len(order) - len(styles)} other cells.")
    with styled():
        figure = new_figure(COLUMN, 2.4 + legend.height + note_height(texts))
        axes = figure.subplots()
        for cell in order:
            own = runs[runs["cell"] == cell]
            draw_cell(axes, own["gpu_hours"], own["accuracy"], styles.get(cell))
        front = means.loc[pareto_front(means)]
        axes.step(*front.to_numpy().T, where="post", color=FAINT, linewidth=0.8, zorder=2)
        axes.set_xlabel("GPU-hours of a run")
        axes.set_ylabel(literal(f"{metric_title(image_metric(frame))} on {benchmark}"))
        axes.margins(0.08)
        axes.grid(color="#ececec", linewidth=0.5)
        despine(axes)
        note(figure, texts)
        legend.draw(figure, [handle(style) for style in styles.values()])
        return figure


def pareto_front(means: pd.DataFrame) -> list[str]:
    """Return the cells that no other one beats, cheapest first.

    `means` has `gpu_hours` and `accuracy`, indexed by cell. A cell is beaten by one that costs no
    more and is more accurate, or costs less and is as accurate.
    """
    front: list[str] = []
    best = float("-inf")
    for cell, row in means.sort_values(
        ["gpu_hours", "accuracy"], ascending=[True, False]
    ).iterrows():
        if row["accuracy"] > best:
            front.append(str(cell))
            best = row["accuracy"]
    return front


def _runs(costs: pd.DataFrame, frame: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """Return `cell`, `gpu_hours` and `accuracy` of the runs that have both."""
    rows = image_rows(frame[frame["benchmark"] == benchmark])
    runs = rows[["run", "cell", "value"]].rename(columns={"value": "accuracy"})
    if "gpu_hours" not in costs:
        return runs.iloc[:0].assign(gpu_hours=0.0)
    hours = costs[["run", "gpu_hours"]].drop_duplicates("run")
    return runs.merge(hours, on="run").dropna(subset=["accuracy", "gpu_hours"])
