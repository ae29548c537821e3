"""All that a report tells of a sweep, computed once: numbers, differences, effects, health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from densevit.config import PROBES
from densevit.data.names import CLEAN
from densevit.errors import UserError
from densevit.results import marginals as effects_of
from densevit.results import stats, words
from densevit.results.cells import cells_frame
from densevit.results.collect import costs, curves, gather
from densevit.results.resampled import Resampled, resample
from densevit.results.robustness import comparable, effective
from densevit.sweep.baseline import baselines
from densevit.sweep.grid import value_word
from densevit.sweep.plan import Plan

MOST_SETS = 8  # test sets for which the effect of each axis is computed
MANY_CELLS = 400  # above which effects of axes are those on two test sets
MOST_LEVELS = 12  # of an axis whose levels are compared one by one
COLLAPSED = "health/collapsed"


@dataclass(frozen=True)
class Findings:
    """What was found. `wanted` is the difference in points that matters to who asks.

    `differences` are of top-1; `beyond` are those of effective robustness on the test sets of
    which there is a line (`lined`), and of accuracy less clean accuracy on the others; `robust` is
    `robustness.effective`, and `fault` why there is none. `shown` are the cells that figures and
    tables of a large sweep show, all of them in a small one; `curves` and `collapsed` are of these
    alone. `means` are `stats.summary` of top-1, `pictures` the intervals over seeds and pictures.
    """

    plan: Plan
    wanted: float
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
    fault: str
    marginals: pd.DataFrame
    shares: pd.DataFrame
    flips: pd.DataFrame
    costs: pd.DataFrame
    curves: pd.DataFrame
    collapsed: pd.DataFrame
    shown: Sequence[str]
    means: pd.DataFrame
    pictures: Resampled = field(default_factory=Resampled)

    @cached_property
    def labels(self) -> dict[str, str]:
        return dict(zip(self.cells["cell"], self.cells["label"], strict=True))

    @cached_property
    def shifted(self) -> list[str]:
        """The test sets that are neither clean ones nor probes."""
        chosen = self.frame.loc[self.frame["metric"] == "top1", "benchmark"]
        return words.shifted_only(chosen, (*CLEAN, *PROBES))


def look(
    plan: Plan, references: pd.DataFrame, wanted: float, names: Sequence[str], most_cells: int
) -> Findings:
    """Look at the runs of a plan and compute everything that follows.

    `references` are `robustness.read_references`, `names` the curves that are wanted beside those
    of collapse, and `most_cells` how many cells are shown of a large sweep.
    """
    frame, coverage = gather(plan)
    cells, base = cells_frame(plan), baselines(plan)
    differences = stats.differences(frame, base, wanted=wanted)
    means = stats.summary(frame[frame["metric"] == "top1"])
    robust, fault = _robust(frame, references)
    beyond, lined = _beyond(frame, robust, base, wanted)
    shown = telling(cells, frame, base, differences, most_cells)
    marginals, shares, flips = _effects(plan, frame, cells)
    drawn = curves(plan, [*names, COLLAPSED], shown)
    return Findings(
        plan=plan, wanted=wanted, frame=frame, coverage=coverage, cells=cells, baselines=base,
        names=words.contrasts(cells, base, plan.axes), differences=differences, beyond=beyond,
        lined=lined, references=references, robust=robust, fault=fault, marginals=marginals,
        shares=shares, flips=flips, costs=costs(plan), curves=drawn[drawn["name"] != COLLAPSED],
        collapsed=last_values(drawn, COLLAPSED), shown=shown,
        means=means, pictures=resample(plan, means, differences),
    )  # fmt: skip


def telling(
    cells: pd.DataFrame,
    frame: pd.DataFrame,
    base: Mapping[str, str],
    differences: pd.DataFrame,
    most: int,
) -> list[str]:
    """The cells worth showing where there are more than `most`, in the plan's order.

    First the most accurate on the first test set, then those with decided differences, each with
    its baseline, until the number is reached.
    """
    if len(cells) <= most:
        return list(cells["cell"])
    top1 = frame[frame["metric"] == "top1"]
    first = top1[top1["benchmark"] == next(iter(top1["benchmark"]), "val")]
    best = first.groupby("cell")["value"].mean().sort_values(ascending=False).index
    decided = words.ranked(differences[differences["verdict"] == "different"])["cell"]
    chosen: dict[str, None] = {}
    for cell in [*best[: most // 2], *dict.fromkeys(decided), *best, *cells["cell"]]:
        group = dict.fromkeys([cell, *([base[cell]] if cell in base else [])])
        if len(chosen | group) > most:
            break
        chosen |= group
    return [cell for cell in cells["cell"] if cell in chosen]


def last_values(drawn: pd.DataFrame, name: str) -> pd.DataFrame:
    """Each run's last value of a curve."""
    rows = drawn[drawn["name"] == name].sort_values("step", kind="stable")
    return rows.drop_duplicates("run", keep="last").sort_index()


def _robust(frame: pd.DataFrame, references: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    try:
        return effective(comparable(frame), references), ""
    except UserError as error:  # too few references: the rest of the report is none the worse
        return effective(frame.iloc[:0], references), str(error)


def _beyond(
    frame: pd.DataFrame, robust: pd.DataFrame, base: Mapping[str, str], wanted: float
) -> tuple[pd.DataFrame, frozenset[str]]:
    """Differences in what accuracy under shift is beyond clean accuracy: where there is a line of
    reference models beyond that (on the test sets returned), elsewhere `gaps`."""
    runs = frame.drop_duplicates("run").set_index("run")[["cell", "seed", "state"]]
    lined = robust.rename(columns={"effective": "value"}).join(runs, on="run")
    names = frozenset(lined["benchmark"])
    rest = gaps(frame)
    values = pd.concat([lined, rest[~rest["benchmark"].isin(names)]]) if names else rest
    values = values.assign(metric="beyond", n=0)
    return stats.differences(values, base, metric="beyond", wanted=wanted), names


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy under shift less clean accuracy of the same run, in points: a row a run and shifted
    test set, with the columns of `frame`.

    Clean accuracy is that in the benchmark's own mix of classes (`matched_clean`) where a run has
    it, else the accuracy on the clean test set.
    """
    top1 = frame[frame["metric"] == "top1"]
    shifted = top1[~top1["benchmark"].isin((*CLEAN, *PROBES))]
    clean = top1[top1["benchmark"].isin(CLEAN)].sort_values("benchmark")
    by_run = clean.drop_duplicates("run").set_index("run")["value"]
    matched = frame[frame["metric"] == "matched_clean"].set_index(["run", "benchmark"])["value"]
    keys = pd.MultiIndex.from_frame(shifted[["run", "benchmark"]])
    own = pd.Series(matched.reindex(keys).to_numpy(), index=shifted.index)
    return shifted.assign(value=shifted["value"] - own.fillna(shifted["run"].map(by_run)))


def _effects(
    plan: Plan, frame: pd.DataFrame, cells: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The effect of each axis, shares of variance and flips, on each test set; of one axis none,
    whose effects are the differences between cells."""
    top1 = frame[frame["metric"] == "top1"]
    names = [] if len(plan.axes) < 2 else list(dict.fromkeys(top1["benchmark"]))[:MOST_SETS]
    axes = leveled_axes(cells, plan.axes)
    effects, shares, flips = [], [], []
    for name in names if len(cells) <= MANY_CELLS else _main(names):
        rows = top1[top1["benchmark"] == name]
        for axis in axes:
            effects.append(effects_of.marginals(rows, cells, axis, name).assign(benchmark=name))
        share = effects_of.variance_shares(rows, cells, plan.axes, name)
        shares.append(share.assign(benchmark=name))
        flips.append(effects_of.flips(rows, cells, axes, name).assign(benchmark=name))
    return _corrected(_joined(effects)), _joined(shares), _joined(flips)


def _main(names: Sequence[str]) -> list[str]:
    """A clean test set and a shifted one."""
    clean = [name for name in names if name in CLEAN]
    return [*clean[:1], *words.shifted_only(names, (*CLEAN, *PROBES))[:1]]


def leveled_axes(cells: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """The axes of few enough levels to tell one from another; more are a curve."""
    levels = {axis: cells[axis].map(value_word)[cells[axis].notna()].nunique() for axis in axes}
    return [axis for axis in axes if levels[axis] <= MOST_LEVELS]


def _corrected(effects: pd.DataFrame) -> pd.DataFrame:
    """With Holm's correction over all effects that are told, and not those of a single axis."""
    if effects.empty:
        return effects
    return effects.assign(p_holm=stats.holm(effects["p"]))


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    full = [part for part in parts if len(part)]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame()
