"""Reasons to doubt the numbers of a sweep, as sentences. Pure: frames in, text out."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from densevit.results.collect.numbers import NOTHING_MEASURED
from densevit.results.report.phrases import MOST_NAMED, listed
from densevit.utils.console import count

# A difference in the share of clipped steps from which on the report warns.
UNEVEN_CLIPPING = 0.2
FAILED = ("failed", "lost")


def missing(coverage: pd.DataFrame) -> list[str]:
    """Return sentences on the runs without results, by state, and on their cells."""
    lacking = coverage[~coverage["measured"]]
    total = len(coverage)
    if lacking.empty:
        return [f"All planned runs ({total}) are finished and have results."]
    kinds = lacking["state"].where(
        lacking["state"] != "finished", "finished without readable results"
    )
    kinds = kinds.mask(lacking["message"] == NOTHING_MEASURED, "finished on images without labels")
    states = ", ".join(f"{n} {kind}" for kind, n in kinds.value_counts().items())
    lines = [f"{total - len(lacking)} of {total} planned runs have results; {states}."]
    by_cell = coverage.groupby(["cell", "label"], sort=False)["measured"]
    counts = by_cell.agg(measured="sum", planned="size").reset_index()
    rows = list(counts.itertuples(index=False))
    without = [row.label for row in rows if row.measured == 0]
    fewer = [
        f"{row.label} ({row.measured} of {row.planned})"
        for row in rows
        if 0 < row.measured < row.planned
    ]
    if without:
        lines.append(f"Cells without any result: {listed(without)}.")
    if fewer:
        lines.append(f"Cells with fewer seeds than planned: {listed(fewer)}.")
    return lines


def survivors(coverage: pd.DataFrame) -> list[str]:
    """Return a sentence if a cell with results has failed runs, too.

    Seeds need not fail by chance: those that are left may be the easy ones.
    """
    failed = coverage["state"].isin(FAILED)
    by_cell = coverage.assign(failed=failed).groupby(["cell", "label"], sort=False)
    counts = by_cell.agg(failed=("failed", "sum"), measured=("measured", "sum")).reset_index()
    chosen = counts[(counts["failed"] > 0) & (counts["measured"] > 0)]
    if chosen.empty:
        return []
    names = listed(f"{row.label} ({row.failed} failed)" for row in chosen.itertuples())
    return [f"Means over the survivors of failed runs may be too good: {names}."]


def identical(frame: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Return sentences on cells, and on seeds of a cell, that have the same numbers to the last
    digit: a setting, or the seed, that does nothing."""
    key = ["seed", "benchmark", "metric", "value"]
    ordered = frame[frame["metric"] != "ways"].sort_values(key[:3], kind="stable")
    cells: dict[object, list[str]] = {}
    constant = []
    for cell, rows in ordered.groupby("cell", sort=False):
        cells.setdefault(tuple(rows[key].itertuples(index=False, name=None)), []).append(str(cell))
        seeds = [tuple(part["value"]) for _, part in rows.groupby("seed")]
        if len(seeds) > 1 and len(set(seeds)) == 1:
            constant.append(labels.get(str(cell), str(cell)))
    lines = [
        f"The numbers of {' and '.join(labels.get(cell, cell) for cell in same[:MOST_NAMED])} are "
        "identical in every seed: does the setting in which they differ do anything?"
        for same in cells.values()
        if len(same) > 1
    ]
    if constant:
        lines.append(f"All seeds have the same numbers in {listed(constant)}: is the seed used?")
    return lines


def unpaired(
    baselines: Mapping[str, str], frame: pd.DataFrame, names: Mapping[str, str]
) -> list[str]:
    """Return a sentence on the comparisons whose two cells have results, but no seed in common."""
    seeds = {cell: set(rows) for cell, rows in frame.groupby("cell", sort=False)["seed"]}
    without = [
        names.get(cell, cell)
        for cell, base in baselines.items()
        if cell in seeds and base in seeds and not seeds[cell] & seeds[base]
    ]
    if not without:
        return []
    return [f"Not compared, since the two cells have no seed in common: {listed(without)}."]


def collapsed(last: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Return a sentence for each cell whose contrastive features had collapsed at the last check.

    `last` has cell, seed and value: the last `health/collapsed` of each run.
    """
    lines = []
    for cell, rows in last.groupby("cell", sort=False):
        fallen = sorted(rows.loc[rows["value"] == 1, "seed"])
        if fallen:
            seeds = ", ".join(map(str, fallen[:MOST_NAMED]))
            more = ", ..." if len(fallen) > MOST_NAMED else ""
            noun = "seed" if len(fallen) == 1 else "seeds"
            lines.append(
                f"The contrastive features of {labels.get(str(cell), str(cell))} collapsed in "
                f"{len(fallen)} of {count(len(rows), 'seed')} ({noun} {seeds}{more}). The results "
                "of these runs say little about the setting."
            )
    return lines


def clipped(logged: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Return a sentence if gradients were clipped much more often in one cell than in another.

    `logged` has cell and value: `train/clipped_share` of each logged interval.
    """
    shares = logged.groupby("cell", sort=False)["value"].mean()
    if len(shares) < 2 or shares.max() - shares.min() < UNEVEN_CLIPPING:
        return []
    most, least = (labels.get(str(cell), str(cell)) for cell in (shares.idxmax(), shares.idxmin()))
    return [
        f"Gradients were clipped in {shares.max():.0%} of the steps of {most} and in "
        f"{shares.min():.0%} of those of {least}: part of a difference between them may come from "
        "grad_clip. Repeat them with a higher value before you conclude."
    ]
