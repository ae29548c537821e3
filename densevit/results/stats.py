"""What seeds allow to say: means with intervals, paired differences with a verdict, seeds needed.

A cell's runs differ by their seed alone. Runs of two cells with one seed start from the same
weights and see the pictures in the same order as far as they can, so cells are compared seed by
seed: what the seeds have in common falls out. All intervals are of 95 %; t distributions, power and
corrections are those of scipy and statsmodels.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

LEVEL = 0.95
FEW = 100  # seeds up to which the power is computed exactly
MOST_SEEDS = 10_000  # needed: above, the answer is that this cannot be decided
SUMMARY = ["cell", "benchmark", "metric", "n", "mean", "std", "low", "high"]
DIFFERENCES = [
    "cell", "baseline", "benchmark", "metric", "n", "difference", "std", "low", "high", "effect",
    "p", "p_holm", "verdict", "seeds_needed",
]  # fmt: skip


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Each cell on each benchmark (`SUMMARY`): n seeds, mean, std (n-1), and the t interval of the
    mean; NaN below two seeds. A value that is no finite number makes all NaN: it is not dropped."""
    finite = frame.assign(value=frame["value"].where(np.isfinite(frame["value"])))
    groups = finite.groupby(["cell", "benchmark", "metric"], sort=False, observed=True)["value"]
    found = groups.agg(["size", "count", "mean", "std"]).reset_index()
    found.loc[found["size"] != found["count"], ["mean", "std"]] = math.nan
    found = found.rename(columns={"size": "n"})
    half = _half_width(found["std"], found["n"])
    return found.assign(low=found["mean"] - half, high=found["mean"] + half)[SUMMARY]


def differences(
    frame: pd.DataFrame,
    baselines: Mapping[str, str],
    metric: str = "top1",
    wanted: float = 1.0,
) -> pd.DataFrame:
    """Each cell less its baseline, paired by seed, a row a cell and benchmark (`DIFFERENCES`).

    n: seeds that both have. std: of the seeds' differences. low, high: paired t interval. effect:
    the difference over the std (Cohen's d_z). p_holm: Holm's correction over all rows with a p.

    verdict:
        different: p_holm is below 0.05.
        alike: not different, and the interval lies within ± `wanted` points.
        open: neither. `seeds_needed` are the seeds, in all, that a difference of `wanted` needs to
            be found in 80 of 100 cases, by the std that was seen.
        single: fewer than two seeds in common.
        undefined: a value is not a finite number.

    A pair that has no seed in common on a benchmark has no row there. Seeds whose differences agree
    to the last picture (std 0) would decide anything, even two of them. So interval, effect, p and
    seeds_needed take the std to be at least the `rounding` of the benchmark's accuracy; equal cells
    have difference 0, std 0, p 1, and an interval of that rounding.
    """
    chosen = frame.loc[frame["metric"] == metric, ["cell", "seed", "benchmark", "value", "n"]]
    pairs = pd.DataFrame(list(baselines.items()), columns=["cell", "baseline"], dtype=object)
    theirs = chosen[["cell", "seed", "benchmark", "value"]].rename(
        columns={"cell": "baseline", "value": "other"}
    )
    both = pairs.merge(chosen, on="cell").merge(theirs, on=["baseline", "seed", "benchmark"])
    each = both["value"] - both["other"]
    both["difference"] = each.where(np.isfinite(each))
    both["rounding"] = rounding(metric, both["n"])
    groups = both.groupby(["cell", "baseline", "benchmark"], sort=False, observed=True)
    found = groups["difference"].agg(["size", "count", "mean", "std"]).reset_index()
    least = groups["rounding"].max().to_numpy(dtype=float)
    found.loc[found["size"] != found["count"], ["mean", "std"]] = math.nan
    found = found.rename(columns={"size": "n", "mean": "difference"}).assign(metric=metric)
    spread = np.maximum(found["std"].astype(float), least)  # NaN stays NaN
    half = _half_width(spread, found["n"])
    found["low"], found["high"] = found["difference"] - half, found["difference"] + half
    found["effect"], found["p"] = _tested(found["difference"], spread, found["n"])
    found["p_holm"] = holm(found["p"])
    found["verdict"] = _verdicts(found, wanted)
    undecided = found["verdict"] == "open"
    found["seeds_needed"] = math.nan
    found.loc[undecided, "seeds_needed"] = seeds_needed_each(spread[undecided].to_numpy(), wanted)
    return found[DIFFERENCES]


def seeds_needed(std: float, wanted: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Seeds with which a paired t test finds a difference of `wanted` with that power, if the
    seeds' differences have this std; `MOST_SEEDS` stands for as many or more."""
    return int(seeds_needed_each(np.array([std]), wanted, power, alpha)[0])


def seeds_needed_each(
    std: NDArray[np.float64], wanted: float, power: float = 0.8, alpha: float = 0.05
) -> NDArray[np.float64]:
    """`seeds_needed` of each std (k,); NaN of NaN.

    By halving up to `FEW` seeds, since the power rises with them; of more by the normal
    approximation. statsmodels' `TTestPower` gives the same numbers, one at a time.
    """
    if wanted <= 0:
        raise ValueError(f"wanted must be above 0, got {wanted}")
    known = np.isfinite(std)
    effect = np.where(known, wanted / np.maximum(np.where(known, std, 1.0), 1e-12), 1.0)
    quantiles = stats.norm.ppf([1 - alpha / 2, power])
    many = np.ceil((quantiles.sum() / effect) ** 2 + quantiles[0] ** 2 / 2)
    low, high = np.full(len(std), 2), np.full(len(std), FEW)
    while (low < high).any():
        middle = (low + high) // 2
        enough = _power(effect, middle, alpha) >= power
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        low = np.minimum(low, high)
    needed = np.where(many > FEW, np.minimum(many, MOST_SEEDS), low)
    return np.where(known, needed, math.nan)


def iqm(values: ArrayLike) -> tuple[float, float, float]:
    """The interquartile mean of (k,) values and its bootstrap interval: the mean without the lowest
    and the highest quarter, which a few runs that went wrong do not move (Agarwal et al., "Deep
    Reinforcement Learning at the Edge of the Statistical Precipice", 2021). NaN below four values.
    """
    held = np.asarray(values, dtype=float)
    if len(held) < 4 or not np.isfinite(held).all():
        return math.nan, math.nan, math.nan
    middle = float(stats.trim_mean(held, 0.25))
    if np.ptp(held) == 0:
        return middle, middle, middle

    def statistic(sample: NDArray, axis: int = -1) -> NDArray:
        return stats.trim_mean(sample, 0.25, axis=axis)

    found = stats.bootstrap(
        (held,), statistic, confidence_level=LEVEL, n_resamples=2000, method="percentile",
        vectorized=True, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return middle, float(found.low), float(found.high)


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for how many they are (Holm 1979); NaN stays NaN and is not counted."""
    corrected = p.astype(float).copy()
    known = corrected.notna()
    if known.any():
        gc.freeze()  # statsmodels looks for garbage at each correction; what is here now is none
        try:
            corrected[known] = multipletests(corrected[known], method="holm")[1]
        finally:
            gc.unfreeze()
    return corrected


def paired(samples: Sequence[NDArray[np.float64]], least: float = 0.0) -> pd.DataFrame:
    """A row a sample of paired differences: difference (its mean), low, high and p of the paired t
    test; NaN below two values and where one is no finite number. `least` is the smallest std that
    is believed (`rounding`)."""
    values = [np.asarray(each, dtype=float) for each in samples]
    finite = [len(each) > 0 and bool(np.isfinite(each).all()) for each in values]
    pairs = list(zip(values, finite, strict=True))
    mean = pd.Series([v.mean() if ok else math.nan for v, ok in pairs], dtype=float)
    std = [v.std(ddof=1) if ok and len(v) > 1 else math.nan for v, ok in pairs]
    spread = pd.Series(np.maximum(np.array(std, dtype=float), least))
    count = pd.Series([len(v) for v in values], dtype=float)
    half = _half_width(spread, count)
    p = _tested(mean, spread, count)[1]
    return pd.DataFrame({"difference": mean, "low": mean - half, "high": mean + half, "p": p})


def rounding(metric: str, pictures: pd.Series) -> pd.Series:
    """The std, in points, that rounding alone gives a difference of two accuracies of n pictures,
    which are multiples of 1/n; 0 for a metric that is no share of pictures, and for unknown n."""
    counts = "top1" in metric or metric == "top5"
    known = pictures.where(pictures > 0).astype(float)
    # Each of the two is uniform in a step, whose variance is 1/12 of the step squared.
    return (100 / (known * math.sqrt(6))).fillna(0.0) * float(counts)


def _half_width(std: pd.Series, n: pd.Series) -> pd.Series:
    """Of the t interval of a mean; NaN below two values."""
    count = n.astype(float)
    quantile = stats.t.ppf((1 + LEVEL) / 2, (count - 1).where(count > 1))
    return quantile * std.astype(float) / np.sqrt(count)


def _tested(mean: pd.Series, std: pd.Series, n: pd.Series) -> tuple[pd.Series, pd.Series]:
    """d_z and the two-sided p of a one-sample t test."""
    count, spread = n.astype(float), std.astype(float)
    # No spread at all: 0 is no effect, and anything else an endless one.
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = (mean / spread).where(~((mean == 0) & (spread == 0)), 0.0)
    known = (count > 1) & mean.notna() & spread.notna()
    degrees = (count - 1).where(known)
    p = 2 * stats.t.sf(np.abs(effect) * np.sqrt(count), degrees)
    return effect.where(known), pd.Series(p, index=mean.index, dtype=float).where(known)


def _verdicts(found: pd.DataFrame, wanted: float) -> NDArray:
    inside = (found["low"] >= -wanted) & (found["high"] <= wanted)
    return np.select(
        [
            found["difference"].isna(),
            found["n"] < 2,
            found["p_holm"] < 1 - LEVEL,
            inside,
        ],
        ["undefined", "single", "different", "alike"],
        default="open",
    )


def _power(effect: NDArray, count: NDArray, alpha: float) -> NDArray:
    """Of a two-sided paired t test, from the noncentral t distribution (as in Cohen 1988)."""
    degrees, shift = count - 1, effect * np.sqrt(count)
    edge = stats.t.ppf(1 - alpha / 2, degrees)
    upper, lower = stats.nct.sf(edge, degrees, shift), stats.nct.cdf(-edge, degrees, shift)
    # scipy has no number where the shift is far beyond the edge: the power is 1 there.
    return np.where(np.isfinite(upper), upper, 1.0) + np.where(np.isfinite(lower), lower, 0.0)
