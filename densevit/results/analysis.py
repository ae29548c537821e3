"""The results that a report shows, computed once: numbers, differences, effects, health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from densevit.config.evaluation_names import CLEAN
from densevit.config.probes import probes_by_name
from densevit.launch.run_state import RunState
from densevit.results.collect.cells import cells_frame
from densevit.results.collect.numbers import costs, curves, gather
from densevit.results.stats import marginals, ranking, seeds, variance
from densevit.results.stats.image_intervals import ImageIntervals, image_intervals
from densevit.results.stats.robustness import comparable, effective
from densevit.results.tables import contrast_names
from densevit.sweep.baseline import baselines
from densevit.sweep.cells import value_text
from densevit.sweep.plan import Plan

MOST_SETS = 8  # test sets for which the effect of each axis is computed
MANY_CELLS = 400  # above this, effects of axes are computed on two test sets
MOST_LEVELS = 12  # levels of an axis that are compared one by one
COLLAPSED = "health/collapsed"
CLIPPED = "train/clipped_share"


@dataclass(frozen=True)
class Findings:
    """The results of a sweep. `smallest_effect` is the smallest difference in points that matters.

    `differences` holds differences in `metric`. `beyond` holds those in effective robustness on
    test sets with a line of reference models (`lined`), and in accuracy minus clean accuracy on the
    others. `robust` is `robustness.effective`. `shown` lists the cells in figures and tables: a
    selection of a large sweep, else all; `curves`, `collapsed` and `clipped` cover only these.
    `means` is `seeds.summary` of `metric`; `image_intervals` holds the intervals over seeds and
    images.
    """

    plan: Plan
    smallest_effect: float
    frame: pd.DataFrame
    coverage: pd.DataFrame
    cells: pd.DataFrame
    baselines: Mapping[str, str]
    names: Mapping[str, str]
    differences: pd.DataFrame
    beyond: pd.DataFrame
    lined: frozenset[str]
    references: pd.DataFrame
    robust: pd.DataFrame
    marginals: pd.DataFrame
    shares: pd.DataFrame
    flips: pd.DataFrame
    costs: pd.DataFrame
    curves: pd.DataFrame
    collapsed: pd.DataFrame
    clipped: pd.DataFrame
    shown: Sequence[str]
    means: pd.DataFrame
    image_intervals: ImageIntervals

    @cached_property
    def labels(self) -> dict[str, str]:
        return dict(zip(self.cells["cell"], self.cells["label"], strict=True))

    @cached_property
    def shifted(self) -> list[str]:
        """The test sets that are neither clean ones nor probes."""
        return ranking.shifted_only(ranking.image_rows(self.frame)["benchmark"])

    @property
    def metric(self) -> str:
        """The main metric of whole images."""
        return ranking.image_metric(self.frame)


def analyze(
    plan: Plan,
    references: pd.DataFrame,
    smallest_effect: float,
    names: Sequence[str],
    most_cells: int,
    states: Mapping[str, RunState] | None = None,
) -> Findings:
    """Read the runs of a plan and compute everything that a report shows.

    `references` is `reference_models.read_references`, `names` the curves to read besides that of
    collapse, `most_cells` the number of cells shown of a large sweep; `states`: see `gather`.

    Errors: `UserError` if there are too few reference models for a line.
    """
    frame, coverage = gather(plan, states)
    cells, base = cells_frame(plan), baselines(plan)
    metric = ranking.image_metric(frame)
    differences = seeds.differences(frame, base, metric, smallest_effect)
    means = seeds.summary(ranking.image_rows(frame))
    robust = effective(comparable(frame), references)
    beyond, lined = _beyond(frame, robust, base, smallest_effect)
    shown = cells_to_show(cells, frame, base, differences, most_cells)
    axis_effects, shares, flips = _effects(plan, frame, cells)
    points = curves(plan, [*names, COLLAPSED, CLIPPED], shown)
    return Findings(
        plan=plan, smallest_effect=smallest_effect, frame=frame, coverage=coverage, cells=cells,
        baselines=base, names=contrast_names.contrasts(cells, base, plan.axes, plan.named),
        differences=differences, beyond=beyond, lined=lined, references=references, robust=robust,
        marginals=axis_effects, shares=shares, flips=flips, costs=costs(plan),
        curves=points[points["name"] != COLLAPSED], collapsed=last_values(points, COLLAPSED),
        clipped=points[points["name"] == CLIPPED],
        shown=shown, means=means, image_intervals=image_intervals(plan, means, differences),
    )  # fmt: skip


def cells_to_show(
    cells: pd.DataFrame,
    frame: pd.DataFrame,
    base: Mapping[str, str],
    differences: pd.DataFrame,
    most: int,
) -> list[str]:
    """Return the cells worth showing, at most `most`, in plan order.

    First come the most accurate on the first test set, then those with established differences,
    each with its baseline, until the limit is reached.
    """
    if len(cells) <= most:
        return list(cells["cell"])
    rows = ranking.image_rows(frame)
    first = rows[rows["benchmark"] == next(iter(rows["benchmark"]), "val")]
    means = first.groupby("cell", sort=False)["value"].mean()
    best = means.sort_values(ascending=False, kind="stable").index  # of equal ones in plan order
    established = ranking.ranked(differences[differences["verdict"] == "established"])["cell"]
    chosen: dict[str, None] = {}
    for cell in [*best[: most // 2], *dict.fromkeys(established), *best, *cells["cell"]]:
        group = dict.fromkeys([cell, *([base[cell]] if cell in base else [])])
        if len(chosen | group) > most:
            break
        chosen |= group
    return [cell for cell in cells["cell"] if cell in chosen]


def last_values(points: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return each run's last value of a curve."""
    rows = points[points["name"] == name].sort_values("step", kind="stable")
    return rows.drop_duplicates("run", keep="last").sort_index()


def _beyond(
    frame: pd.DataFrame, robust: pd.DataFrame, base: Mapping[str, str], smallest_effect: float
) -> tuple[pd.DataFrame, frozenset[str]]:
    """Return differences in accuracy beyond clean accuracy, and the test sets in `robust`.

    On these test sets it is accuracy beyond the line of reference models; elsewhere `gaps`.
    """
    runs = frame.drop_duplicates("run").set_index("run")[["cell", "seed", "state"]]
    lined = robust.rename(columns={"effective": "value"}).join(runs, on="run")
    names = frozenset(lined["benchmark"])
    rest = gaps(frame)
    values = pd.concat([lined, rest[~rest["benchmark"].isin(names)]]) if names else rest
    values = values.assign(metric="beyond", n=0)
    return seeds.differences(values, base, "beyond", smallest_effect), names


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy under shift minus clean accuracy of the same run, in points.

    One row per run and shifted test set, with the columns of `frame`. Clean accuracy is that in the
    benchmark's own mix of classes (`matched_clean`) if the run has it, else that on the clean test
    set.
    """
    rows = ranking.image_rows(frame)
    shifted = rows[~rows["benchmark"].isin((*CLEAN, *probes_by_name()))]
    clean = rows[rows["benchmark"].isin(CLEAN)].sort_values("benchmark")
    by_run = clean.drop_duplicates("run").set_index("run")["value"]
    matched = frame[frame["metric"] == "matched_clean"].set_index(["run", "benchmark"])["value"]
    keys = pd.MultiIndex.from_frame(shifted[["run", "benchmark"]])
    own = pd.Series(matched.reindex(keys).to_numpy(), index=shifted.index)
    return shifted.assign(value=shifted["value"] - own.fillna(shifted["run"].map(by_run)))


def _effects(
    plan: Plan, frame: pd.DataFrame, cells: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return the effects of each axis, the shares of variance and the flips, on each test set.

    With a single axis all are empty: its effects are the differences between cells.
    """
    measured = ranking.image_rows(frame)
    names = [] if len(plan.axes) < 2 else list(dict.fromkeys(measured["benchmark"]))[:MOST_SETS]
    axes = leveled_axes(cells, plan.axes)
    effects, shares, flips = [], [], []
    for name in names if len(cells) <= MANY_CELLS else _clean_and_shifted(names):
        rows = measured[measured["benchmark"] == name]
        for axis in axes:
            effects.append(marginals.marginals(rows, cells, axis, name).assign(benchmark=name))
        share = variance.variance_shares(rows, cells, plan.axes, name)
        shares.append(share.assign(benchmark=name))
        flips.append(marginals.flips(rows, cells, axes, name).assign(benchmark=name))
    return _corrected(_concatenated(effects)), _concatenated(shares), _concatenated(flips)


def _clean_and_shifted(names: Sequence[str]) -> list[str]:
    """Return a clean test set and a shifted one."""
    clean = [name for name in names if name in CLEAN]
    return [*clean[:1], *ranking.shifted_only(names)[:1]]


def leveled_axes(cells: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Return the axes with few enough levels to compare one by one; more levels form a curve."""
    levels = {axis: cells[axis].map(value_text)[cells[axis].notna()].nunique() for axis in axes}
    return [axis for axis in axes if levels[axis] <= MOST_LEVELS]


def _corrected(effects: pd.DataFrame) -> pd.DataFrame:
    """Return the effects with Holm's correction over all of them, not over a single axis."""
    if effects.empty:
        return effects
    return effects.assign(p_holm=seeds.holm(effects["p"]))


def _concatenated(parts: list[pd.DataFrame]) -> pd.DataFrame:
    full = [part for part in parts if len(part)]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame()
