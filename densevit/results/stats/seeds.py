"""Statistics over seeds: means with intervals, and paired differences with a verdict.

Runs of a cell differ by their seed alone. Runs of two cells with the same seed start from the same
weights and see the images in the same order as far as possible, so cells are compared seed by seed,
which cancels the effect of the seed. All intervals are 95 %; t distributions, power and corrections
come from scipy and statsmodels.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from densevit.config.metrics import PERCENTAGES
from densevit.results.collect.cells import over_seeds
from densevit.results.stats.power import seeds_needed

LEVEL = 0.95
SUMMARY = ["cell", "benchmark", "metric", "n", "mean", "std", "low", "high"]
DIFFERENCES = [
    "cell", "baseline", "benchmark", "metric", "n", "difference", "std", "low", "high", "effect",
    "p", "p_holm", "verdict", "seeds_needed",
]  # fmt: skip


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return n seeds, mean, std (n-1) and t interval of each cell on each benchmark (`SUMMARY`).
    With one seed, std and interval are NaN. A value that is not finite is not dropped: it makes all
    NaN. An interval of percentages ends at 0 and 100, which loses no possible mean."""
    finite = frame.assign(value=frame["value"].where(np.isfinite(frame["value"])))
    found = over_seeds(finite).reset_index()
    half = _half_width(found["std"], found["n"])
    low, high = found["mean"] - half, found["mean"] + half
    bounded = found["metric"].isin(PERCENTAGES)
    low, high = low.mask(bounded, low.clip(lower=0)), high.mask(bounded, high.clip(upper=100))
    return found.assign(low=low, high=high)[SUMMARY]


def differences(
    frame: pd.DataFrame,
    pairs: Mapping[str, str] | Iterable[tuple[str, str]],
    metric: str = "top1",
    smallest_effect: float = 1.0,
) -> pd.DataFrame:
    """Return one row per pair and benchmark: the cell minus its baseline, paired by seed.

    `pairs` holds cell and baseline. Columns are `DIFFERENCES`. n: seeds that both have. std: of the
    differences between seeds. low, high: paired t interval. effect: the difference over the std
    (Cohen's d_z). p_holm: p after Holm's correction over all rows with a p.

    verdict:
        established: p_holm is below 0.05.
        equivalent: not established, and the interval lies within ± `smallest_effect` points.
        hint: neither, but p is below 0.05: it would count if it were the only comparison.
        too noisy: none of these.
        single: fewer than two seeds in common.
        undefined: a value is not finite.

    `seeds_needed`, for a hint or too much noise, is the total number of seeds with which a
    difference of `smallest_effect` is found with a power of 80 %, given the observed std, by the
    first step of Holm's correction over all rows that are not established.

    A pair without a common seed on a benchmark has no row there. If the differences of all seeds
    are equal to the last image (std 0), even two seeds would decide anything. So interval, effect,
    p and seeds_needed use at least the `rounding` of the benchmark's accuracy as std; equal cells
    have difference 0, std 0, p 1, and an interval of that rounding.
    """
    chosen = frame.loc[frame["metric"] == metric, ["cell", "seed", "benchmark", "value", "n"]]
    both = _paired_runs(chosen, list(pairs.items() if isinstance(pairs, Mapping) else pairs))
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
    found["verdict"] = _verdicts(found, smallest_effect)
    undecided = found["verdict"].isin(["hint", "too noisy"])
    found["seeds_needed"] = math.nan
    rest = max(1, int((found["p_holm"] >= 1 - LEVEL).sum()))
    needed = seeds_needed(spread[undecided].to_numpy(), smallest_effect, (1 - LEVEL) / rest)
    found.loc[undecided, "seeds_needed"] = needed
    return found[DIFFERENCES]


def _paired_runs(rows: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the rows of each pair's cell with their `difference` from its baseline's; NaN if it is
    not finite. Seeds and benchmarks that one of the two lacks are left out."""
    compared = pd.DataFrame(pairs, columns=["cell", "baseline"], dtype=object)
    theirs = rows[["cell", "seed", "benchmark", "value"]].rename(
        columns={"cell": "baseline", "value": "other"}
    )
    both = compared.merge(rows, on="cell").merge(theirs, on=["baseline", "seed", "benchmark"])
    each = both["value"] - both["other"]
    return both.assign(difference=each.where(np.isfinite(each)))


def iqm(values: ArrayLike) -> tuple[float, float, float]:
    """Return the interquartile mean of (k,) values and its bootstrap interval; NaN if k < 4.

    It drops the lowest and the highest quarter, so that a few failed runs do not move it (Agarwal
    et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", 2021).
    """
    array = np.asarray(values, dtype=float)
    if len(array) < 4 or not np.isfinite(array).all():
        return math.nan, math.nan, math.nan
    middle = float(stats.trim_mean(array, 0.25))
    if np.ptp(array) == 0:
        return middle, middle, middle

    def statistic(sample: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        means: NDArray[np.float64] = stats.trim_mean(sample, 0.25, axis=axis)
        return means

    found = stats.bootstrap(
        (array,), statistic, confidence_level=LEVEL, n_resamples=2000, method="percentile",
        vectorized=True, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return middle, float(found.low), float(found.high)


def holm(p: pd.Series) -> pd.Series:
    """Return p values after Holm's correction (1979); NaN stays NaN and does not count."""
    corrected = p.astype(float).copy()
    known = corrected.notna()
    if known.any():
        gc.freeze()  # statsmodels calls gc.collect() at each correction; skip the objects so far
        try:
            corrected[known] = multipletests(corrected[known], method="holm")[1]
        finally:
            gc.unfreeze()
    return corrected


def paired(samples: Sequence[NDArray[np.float64]], least: float) -> pd.DataFrame:
    """Return one row per sample of paired differences: difference (the mean), low, high and p of
    the paired t test. Below two values low, high and p are NaN; a value that is not finite makes
    all NaN. `least` is a lower bound for the std (`rounding`)."""
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


def rounding(metric: str, images: pd.Series) -> pd.Series:
    """Return the std in points that rounding alone gives a difference of two accuracies over n
    images, which are multiples of 1/n; 0 for other metrics and for unknown n."""
    counts = "top1" in metric or metric == "top5"
    known = images.where(images > 0).astype(float)
    # Each rounding error is uniform over a step, with a variance of step² / 12.
    return (100 / (known * math.sqrt(6))).fillna(0.0) * float(counts)


def _half_width(std: pd.Series, n: pd.Series) -> pd.Series:
    """Return half the width of the t interval of a mean; NaN below two values."""
    count = n.astype(float)
    quantile = stats.t.ppf((1 + LEVEL) / 2, (count - 1).where(count > 1))
    return quantile * std.astype(float) / np.sqrt(count)


def _tested(mean: pd.Series, std: pd.Series, n: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return d_z and the two-sided p of a one-sample t test."""
    count, spread = n.astype(float), std.astype(float)
    # Without any spread, a difference of 0 is no effect, and any other an infinite one.
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = (mean / spread).where(~((mean == 0) & (spread == 0)), 0.0)
    known = (count > 1) & mean.notna() & spread.notna()
    degrees = (count - 1).where(known)
    p = 2 * stats.t.sf(np.abs(effect) * np.sqrt(count), degrees)
    return effect.where(known), pd.Series(p, index=mean.index, dtype=float).where(known)


def _verdicts(found: pd.DataFrame, smallest_effect: float) -> NDArray[np.str_]:
    inside = (found["low"] >= -smallest_effect) & (found["high"] <= smallest_effect)
    return np.select(
        [
            found["difference"].isna(),
            found["n"] < 2,
            found["p_holm"] < 1 - LEVEL,
            inside,
            found["p"] < 1 - LEVEL,
        ],
        ["undefined", "single", "established", "equivalent", "hint"],
        default="too noisy",
    )
