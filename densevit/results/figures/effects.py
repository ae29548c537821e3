"""The effect of each level of each axis, averaged over the other axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from densevit.results.figures.interval_rows import PLAIN, Row, draw_rows, interval_notes, limits
from densevit.results.figures.legend import Legend, handle, note, note_height
from densevit.results.figures.style import (
    COLUMN,
    LINE,
    MOST_STYLES,
    STYLES,
    lines_in,
    new_figure,
    styled,
    wrapped,
)
from densevit.sweep.cells import value_text


class _Panel(NamedTuple):
    """An axis of the sweep: its title, the labels of its levels, and the rows."""

    title: str
    levels: list[str]
    rows: list[Row]


def marginal(marginals: pd.DataFrame, *, smallest_effect: float | None = None) -> Figure | None:
    """Draw each level's difference from its axis's reference level with its 95 % interval.

    One panel per axis, all on one scale; return None without differences. `marginals` is
    `stats.marginals` of one or several axes, with a column `benchmark`. Each benchmark has its
    style; only the first six are drawn. Filled: Holm-corrected p below 0.05.
    """
    if marginals.empty:
        return None
    names = list(dict.fromkeys(marginals["benchmark"]))
    shown = names[:MOST_STYLES]
    rows = marginals[marginals["benchmark"].isin(shown)]
    panels = [_panel(part, shown) for _, part in rows.groupby("axis", sort=False)]
    texts = interval_notes(smallest_effect)
    if len(shown) < len(names):
        texts.append(f"{len(shown)} of {len(names)} benchmarks are shown.")
    with styled():
        return _draw(panels, shown, smallest_effect, texts)


def _draw(
    panels: Sequence[_Panel], names: list[str], smallest_effect: float | None, texts: list[str]
) -> Figure:
    several = len(names) > 1
    legend = Legend(names if several else [])
    most_lines = max(lines_in(panel.levels) for panel in panels)
    each = max(0.12 * len(names) if several else 0.15, LINE * most_lines) + 0.04
    heights = [each * len(panel.levels) + 0.34 + 0.11 * panel.title.count("\n") for panel in panels]
    figure = new_figure(COLUMN, sum(heights) + legend.height + note_height(texts) + 0.28)
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    xlim = limits([row for panel in panels for row in panel.rows], smallest_effect)
    for axes, panel in zip(grid.flat, panels, strict=True):
        draw_rows(axes, panel.rows, xlim, smallest_effect)
        axes.set_title(panel.title, loc="left", pad=3)
        axes.set_yticks(range(len(panel.levels)), panel.levels)
        axes.set_ylim(len(panel.levels) - 0.5, -0.5)
        for y in range(1, len(panel.levels)):
            axes.axhline(y - 0.5, color="#eeeeee", linewidth=0.5, zorder=0)
    grid[-1, 0].set_xlabel("difference from the reference level (points)")
    note(figure, texts)
    legend.draw(figure, [handle(style) for style in STYLES[: len(names)]])
    return figure


def _panel(marginals: pd.DataFrame, names: Sequence[str]) -> _Panel:
    levels = list(dict.fromkeys(value_text(level) for level in marginals["level"]))
    styles = STYLES[: len(names)] if len(names) > 1 else (PLAIN,)
    rows = []
    for row in marginals.itertuples(index=False):
        place = names.index(row.benchmark)
        y = levels.index(value_text(row.level)) + 0.8 * ((place + 0.5) / len(styles) - 0.5)
        filled = bool(row.p_holm < 0.05)
        rows.append(Row(y, row.difference, row.low, row.high, styles[place], filled))
    first = marginals.iloc[0]
    title = wrapped(f"{first['axis']} (reference: {value_text(first['reference'])})", 44)
    return _Panel(title, [wrapped(level, 20) for level in levels], rows)
