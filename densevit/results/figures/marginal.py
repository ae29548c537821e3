"""The effect of each level of each axis, averaged over the other axes."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from densevit.results.figures.rows import Row, draw_rows, reach
from densevit.results.figures.style import (
    COLUMN,
    INK,
    LINE,
    LOOKS,
    MOST_LOOKS,
    Legend,
    Look,
    handle,
    lines_in,
    new_figure,
    note,
    note_height,
    styled,
    wrapped,
)
from densevit.sweep.grid import value_word

_ALONE = (Look(INK, "o", "-"),)


class _Panel(NamedTuple):
    """An axis: its title, its levels as they are written, and the rows."""

    title: str
    levels: list[str]
    rows: list[Row]


def marginal(
    marginals: pd.DataFrame, *, wanted: float | None = None, label: str = "points"
) -> Figure | None:
    """Each level's difference to its axis' reference level with its 95 % interval, a panel an axis;
    None if there is nothing.

    `marginals` is `stats.marginals` of one or several axes; with a column `benchmark`, each
    benchmark has its look, of more than six the first six. Filled: Holm-corrected p under 0.05.
    `label` is what differences are measured in. All panels have the same axis.
    """
    if marginals.empty:
        return None
    alike = marginals["level"].map(value_word) == marginals["reference"].map(value_word)
    found = marginals[~alike]
    if found.empty:
        return None
    every = list(dict.fromkeys(found["benchmark"])) if "benchmark" in found else []
    names = every[:MOST_LOOKS]
    panels = [_panel(rows, names) for _, rows in found.groupby("axis", sort=False)]
    texts = ["Lines: 95 % intervals. Filled: decided (Holm, p < 0.05)."]
    texts += [f"Grey: ±{wanted:g}."] if wanted else []
    texts += (
        [f"{MOST_LOOKS} of {len(every)} benchmarks are shown."] if len(every) > MOST_LOOKS else []
    )
    with styled():
        return _draw(panels, names if len(every) > 1 else [], wanted, label, texts)


def _draw(
    panels: list[_Panel], names: list[str], wanted: float | None, label: str, texts: list[str]
) -> Figure:
    legend = Legend(names)
    each = max(0.15 if len(names) < 2 else 0.12 * len(names), LINE * _lines(panels)) + 0.04
    counts = [len(panel.levels) for panel in panels]
    heights = [each * count + 0.34 + 0.11 * panel.title.count("\n")
               for count, panel in zip(counts, panels, strict=True)]  # fmt: skip
    height = sum(heights) + legend.height + note_height(texts) + 0.28
    figure = new_figure(COLUMN, height)
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    limits = reach([row for panel in panels for row in panel.rows], wanted)
    for axes, panel in zip(grid.flat, panels, strict=True):
        draw_rows(axes, panel.rows, limits, wanted)
        axes.set_title(panel.title, loc="left", pad=3)
        axes.set_yticks(range(len(panel.levels)), panel.levels)
        axes.set_ylim(len(panel.levels) - 0.5, -0.5)
        for y in range(1, len(panel.levels)):
            axes.axhline(y - 0.5, color="#eeeeee", linewidth=0.5, zorder=0)
    grid[-1, 0].set_xlabel(f"difference to the reference level ({label})")
    note(figure, texts)
    legend.draw(figure, [handle(look) for look in LOOKS[: len(names)]])
    return figure


def _panel(rows: pd.DataFrame, names: list[str]) -> _Panel:
    levels = list(dict.fromkeys(value_word(level) for level in rows["level"]))
    looks = LOOKS[: len(names)] if len(names) > 1 else _ALONE
    drawn = []
    for row in rows.to_dict("records"):
        place = names.index(row["benchmark"]) if row.get("benchmark") in names else 0
        if names and row["benchmark"] not in names:
            continue
        offset = 0.8 * ((place + 0.5) / len(looks) - 0.5)
        y = levels.index(value_word(row["level"])) + offset
        p = row.get("p_holm", math.nan)
        drawn.append(
            Row(y, row["difference"], row["low"], row["high"], looks[place], bool(p < 0.05))
        )
    first = rows.iloc[0]
    title = wrapped(f"{first['axis']} (reference: {value_word(first['reference'])})", 44)
    return _Panel(title, [wrapped(level, 20) for level in levels], drawn)


def _lines(panels: list[_Panel]) -> int:
    return max(lines_in(panel.levels) for panel in panels)
