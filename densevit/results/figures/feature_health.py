"""Feature health over training: effective rank, matches, similarities, clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from densevit.config.loss_kinds import LOSS_KINDS
from densevit.results.figures.curves import (
    Curve,
    band_notes,
    curves_by_cell,
    draw_curves,
    other_cells_notes,
    ranked,
)
from densevit.results.figures.layout import panels
from densevit.results.figures.legend import Legend, handle, note, note_height
from densevit.results.figures.style import (
    COLUMN,
    FAINT,
    INK,
    SMALL,
    assign_styles,
    labels_of,
    new_figure,
    styled,
)

# Names of `train.feature_health.measure`. Pairs come first: each fills a row of panels.
HEALTH = {
    "health/image_rank": "rank, image",
    "health/patch_rank": "rank, patches",
    **{
        f"health/{kind.name}_{what}_similarity": f"{kind.name}: {what}s' cosine"
        for kind in LOSS_KINDS
        for what in ("positive", "negative")
    },
    **{f"health/{k.name}_effective_rank": f"rank, {k.name}" for k in LOSS_KINDS},
    "health/match_precision": "precision of matches",
    "train/gradient_norm": "norm of the gradient",
    "train/clipped_share": "share of clipped steps",
}
# Drawn in another panel: the precision of matchings that look at no feature, and in the titles of
# ranks their maximum.
BASELINES = {
    "health/match_precision_same_index": "same index",
    "health/match_precision_uniform": "uniform",
}
MAXIMA = tuple(f"{name}_max" for name in HEALTH if name.endswith("_rank"))
DRAWN = (*HEALTH, *BASELINES, *MAXIMA)
_RANKED_BY = ("health/match_precision", "health/patch_rank", "health/image_rank")


def health(curves: pd.DataFrame, cells: pd.DataFrame) -> Figure | None:
    """Draw effective ranks, match precision, similarities and clipping, a small panel each.

    Return None if no run has logged any. `curves` is `collect.curves` of the names in `DRAWN`,
    `cells` is `cells_frame`; a name of `HEALTH` that no run has logged has no panel. Bands, faint
    parts, crosses and gray lines are those of `learning_curves`. The best six of many cells have
    the highest match precision at the end, taken in turn from each kind of cell that has logged the
    same metrics: a loss without dense pairs has panels that others lack. A cell has the same style
    in all panels.
    """
    found = {name: curves_by_cell(curves, cells, name) for name in HEALTH}
    found = {name: drawn for name, drawn in found.items() if drawn}
    if not found:
        return None
    ranked_by = next((name for name in _RANKED_BY if name in found), next(iter(found)))
    any_curve: dict[str, Curve] = {}
    for name in (*found, ranked_by):
        any_curve |= found[name]
    order = [cell for cell in cells["cell"] if cell in any_curve]
    styles = assign_styles(order, _in_turn(ranked(any_curve, order), found))
    labels = labels_of(cells)
    legend = Legend([labels[cell] for cell in styles])
    interval, texts = band_notes(
        [curve for drawn in found.values() for cell, curve in drawn.items() if cell in styles]
    )
    texts += other_cells_notes(cells, any_curve, styles, "the best of their kind at the end")
    columns = min(2, len(found))
    rows = math.ceil(len(found) / columns)
    with styled():
        height = 1.12 * rows + 0.2 + legend.height + note_height(texts) + 0.6 * (rows == 1)
        figure = new_figure(COLUMN, height)
        grid = panels(figure, len(found), columns, sharex=True)
        for number, (axes, (name, drawn)) in enumerate(zip(grid, found.items(), strict=True)):
            draw_curves(axes, drawn, styles, interval)
            axes.set_title(_title(name, curves), loc="left", pad=3)
            if name == "health/match_precision":
                _draw_baselines(axes, curves)
            elif name == "train/clipped_share":
                axes.set_ylim(-0.03, 1.03)
            axes.locator_params(nbins=4)
            last = number + columns >= len(found)
            axes.tick_params(axis="x", labelbottom=last)
            axes.set_xlabel("epoch" if last else "")
        note(figure, texts)
        legend.draw(figure, [handle(style, line=True) for style in styles.values()])
        return figure


def _title(name: str, curves: pd.DataFrame) -> str:
    """Return a panel's title, with the maximum of a rank if it is the same in all runs."""
    most = curves.loc[curves["name"] == f"{name}_max", "value"].unique()
    return f"{HEALTH[name]} (of {most[0]:.0f})" if len(most) == 1 else HEALTH[name]


def _draw_baselines(axes: Axes, curves: pd.DataFrame) -> None:
    """Draw the precision of matchings that look at no feature as horizontal lines."""
    # At different sides, so that close ones do not overlap.
    for (name, label), x, side in zip(BASELINES.items(), (1, 0), ("right", "left"), strict=True):
        values = curves.loc[curves["name"] == name, "value"]
        if len(values):
            level, (low, high) = values.mean(), axes.get_ylim()
            axes.set_ylim(min(low, level - 0.02), max(high, level + 0.06))
            axes.axhline(level, color=FAINT, linewidth=0.7, linestyle=":", zorder=1)
            axes.annotate(
                label, (x, level), xycoords=("axes fraction", "data"), xytext=(0, 1),
                textcoords="offset points", ha=side, va="bottom", color=INK,
                fontsize=SMALL,
            )  # fmt: skip


def _in_turn(best: Sequence[str], found: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Return the first cell of each kind, then the second of each, and so on."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for cell in best:
        kinds.setdefault(tuple(name for name in found if cell in found[name]), []).append(cell)
    turns = zip_longest(*kinds.values())
    return [cell for turn in turns for cell in turn if cell is not None]
