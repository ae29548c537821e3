"""Names for comparisons of cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from densevit.results.tables.format import MINUS
from densevit.sweep.cells import SEPARATOR, value_text


def contrasts(
    cells: pd.DataFrame,
    baselines: Mapping[str, str],
    axes: Sequence[str],
    named: Callable[[str], str] = str,
) -> dict[str, str]:
    """Map each cell id to the name of its comparison: `dense − none (temperature 0.1)`.

    The two sides show only the axes in which the cells differ; the cell's other axes follow in
    parentheses. `cells` is `cells_frame`, `baselines` is `sweep.baseline.baselines`, `named` is
    `Plan.named`.
    """
    rows = cells.set_index("cell").to_dict("index")
    return {
        cell: _contrast(rows[cell], rows[base], axes, named) for cell, base in baselines.items()
    }


def _contrast(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    axes: Sequence[str],
    named: Callable[[str], str],
) -> str:
    both = [axis for axis in axes if None not in (ours[axis], theirs[axis])]
    apart = [axis for axis in both if ours[axis] != theirs[axis]]
    if not apart:
        return f"{ours['label']} {MINUS} {theirs['label']}"
    left, right = (
        SEPARATOR.join(named(value_text(side[axis])) for axis in apart) for side in (ours, theirs)
    )
    rest = [
        f"{a} {named(value_text(ours[a]))}" for a in axes if a not in apart and ours[a] is not None
    ]
    return f"{left} {MINUS} {right}" + (f" ({', '.join(rest)})" if rest else "")
