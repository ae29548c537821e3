"""The health of features over training: rank, matches, similarities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from densevit.results.figures.curves import (
    Course,
    courses,
    draw_courses,
    ranked,
    told_band,
    told_rest,
)
from densevit.results.figures.style import (
    COLUMN,
    LOOKS,
    Legend,
    handle,
    labels_of,
    new_figure,
    note,
    note_height,
    picked,
    styled,
)

# As `checkup.measure` names them. Pairs come first: each fills a row of panels.
HEALTH = {
    "health/image_rank": "effective rank, image",
    "health/patch_rank": "effective rank, patches",
    "health/global_positive_similarity": "global: positives' cosine",
    "health/global_negative_similarity": "global: negatives' cosine",
    "health/dense_positive_similarity": "dense: positives' cosine",
    "health/dense_negative_similarity": "dense: negatives' cosine",
    "health/global_effective_rank": "effective rank, global",
    "health/dense_effective_rank": "effective rank, dense",
    "health/match_precision": "precision of matches",
}
_MAIN = ("health/match_precision", "health/patch_rank", "health/image_rank")


def health(
    curves: pd.DataFrame, cells: pd.DataFrame, *, shown: Sequence[str] = ()
) -> Figure | None:
    """Effective rank, precision of matches and similarities over training, a small panel each; None
    if no run has logged any.

    `curves` is `collect.curves` of the names in `HEALTH`, `cells` is `cells_frame`; those that no
    run has logged have no panel. Bands, faint parts, crosses, `shown` and grey lines are those of
    `learning_curves`. The best six of many cells are those with the most precise matches at the
    end, in turn of each kind of cell that has logged the same numbers: a loss without dense pairs
    has panels that others are not in. A cell has the same look in all panels.
    """
    found = {name: courses(curves, cells, name) for name in HEALTH}
    found = {name: drawn for name, drawn in found.items() if drawn}
    if not found:
        return None
    main = next((name for name in _MAIN if name in found), next(iter(found)))
    every: dict[str, Course] = {}
    for name in (*found, main):
        every |= found[name]
    order = [cell for cell in cells["cell"] if cell in every]
    looks = dict(
        zip(picked(order, _in_turn(ranked(every, order), found), shown), LOOKS, strict=False)
    )
    labels = labels_of(cells)
    legend = Legend([labels[cell] for cell in looks])
    interval, texts = told_band(
        [c for d in found.values() for cell, c in d.items() if cell in looks]
    )
    texts += told_rest(cells, every, looks, "" if shown else "the best of their kind at the end")
    columns = min(2, len(found))
    lines = math.ceil(len(found) / columns)
    with styled():
        figure = new_figure(
            COLUMN, 1.12 * lines + 0.2 + legend.height + note_height(texts) + 0.6 * (lines == 1)
        )
        grid = figure.subplots(lines, columns, sharex=True, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number >= len(found):
                axes.set_visible(False)
                continue
            name = list(found)[number]
            _panel(axes, name, found[name], looks, interval)
            last = number + columns >= len(found)
            axes.tick_params(axis="x", labelbottom=last)
            axes.set_xlabel("epoch" if last else "")
        note(figure, texts)
        legend.draw(figure, [handle(look, line=True) for look in looks.values()])
        return figure


def _in_turn(best: Sequence[str], found: Mapping[str, Mapping[str, Course]]) -> list[str]:
    """The first of each kind of cell, then the second, and so on."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for cell in best:
        kinds.setdefault(tuple(name for name in found if cell in found[name]), []).append(cell)
    turns = zip_longest(*kinds.values())
    return [cell for turn in turns for cell in turn if cell is not None]


def _panel(axes: Axes, name: str, drawn: dict[str, Course], looks: dict, interval: bool) -> None:
    draw_courses(axes, drawn, looks, interval)
    axes.set_title(HEALTH[name], loc="left", pad=3)
    axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", nbins=4)
