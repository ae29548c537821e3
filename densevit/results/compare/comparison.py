"""The comparison record: settings, metrics, costs and health side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from densevit.config.run_config import RunConfig
from densevit.results.tables.format import metric_title, short
from densevit.results.tables.table import TextTable
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import number, read_metrics
from densevit.sweep.cells import cell_values, value_text

HEALTH = "health/"


@dataclass(frozen=True)
class Comparison:
    """A comparison of A and B, which `lines` describe. A table is None if it would be empty."""

    lines: Sequence[str]
    settings: TextTable | None
    numbers: TextTable
    cost_and_health: TextTable | None


class BenchmarkRow(NamedTuple):
    """One benchmark: the results of A and B, their difference and the verdict."""

    benchmark: str
    a: str
    b: str
    difference: str
    verdict: str


def settings_table(a: RunConfig, b: RunConfig, names: tuple[str, ...]) -> TextTable | None:
    """Return the settings that differ; a note lists those that apply to only one of the two."""
    ours, theirs = cell_values(a, names), cell_values(b, names)
    rows = [
        [name, value_text(ours[name]), value_text(theirs[name])]
        for name in names
        if None not in (ours[name], theirs[name]) and ours[name] != theirs[name]
    ]
    alone = [
        f"Only in {letter}: "
        + ", ".join(f"{n} {value_text(have[n])}" for n in names if n in extra)
        + "."
        for letter, have, lacks in (("A", ours, theirs), ("B", theirs, ours))
        if (extra := {n for n in names if have[n] is not None and lacks[n] is None})
    ]
    title, head = "Settings that differ", ["setting", "A", "B"]
    return TextTable(title, head, rows, " ".join(alone), 3) if rows or alone else None


def numbers_table(rows: Sequence[BenchmarkRow], metric: str, note: str) -> TextTable:
    """Return the rows as a table; a note states if there are none."""
    head = ["benchmark", "A", "B", "A − B", "verdict"]
    texts = [list(row) for row in rows]
    return TextTable(metric_title(metric), head, texts, note if rows else "No results yet.")


def cost_and_health_table(
    costs: Sequence[Mapping[str, float]], health: Sequence[Mapping[str, float]], note: str
) -> TextTable | None:
    """Return costs and health of A and B, one row per value that at least one of the two has."""
    rows = []
    for a, b in (costs, health):
        for name in dict.fromkeys([*a, *b]):
            values = [side.get(name, math.nan) for side in (a, b)]
            if not all(map(math.isnan, values)):
                rows.append([name, *map(short, values)])
    return TextTable("Cost and health", ["per run", "A", "B"], rows, note) if rows else None


def last_health(folder: RunFolder) -> dict[str, float]:
    """Return the last value of each health metric, by name."""
    return {
        name.removeprefix(HEALTH).replace("_", " "): value
        for line in logged_lines(folder)
        for name, logged in line.items()
        if name.startswith(HEALTH) and (value := number(logged)) is not None
    }


def logged_lines(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics file. Errors: `UserError` if one of them is damaged."""
    return read_metrics(folder.metrics_file)[0]
