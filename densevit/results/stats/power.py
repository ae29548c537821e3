"""The number of seeds needed to establish a difference."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

POWER = 0.8
ALPHA = 0.05
FEW = 100  # up to this number of seeds the power is exact
MOST_SEEDS = 10_000  # cap: with so many needed, the difference cannot be decided


def seeds_needed(
    std: NDArray[np.float64], difference: float, level: float = ALPHA
) -> NDArray[np.float64]:
    """Return the number of seeds with which a paired t test establishes a difference.

    `std` (k,) is that of the seeds' differences. The test is two-sided and has power `POWER`. At
    most `MOST_SEEDS`; NaN for NaN. Up to `FEW` seeds by bisection, since the power rises with the
    number of seeds; beyond by the normal approximation. statsmodels' `TTestPower` gives the same
    numbers, one at a time.
    """
    if difference <= 0:
        raise ValueError(f"difference must be above 0, got {difference}")
    known = np.isfinite(std)
    effect = np.where(known, difference / np.maximum(np.where(known, std, 1.0), 1e-12), 1.0)
    quantiles = stats.norm.ppf([1 - level / 2, POWER])
    many = np.ceil((quantiles.sum() / effect) ** 2 + quantiles[0] ** 2 / 2)
    low, high = np.full(len(std), 2), np.full(len(std), FEW)
    while (low < high).any():
        middle = (low + high) // 2
        enough = _power(effect, middle, level) >= POWER
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        low = np.minimum(low, high)
    needed = np.where(many > FEW, np.minimum(many, MOST_SEEDS), low)
    return np.where(known, needed, math.nan)


def _power(
    effect: NDArray[np.float64], count: NDArray[np.int64], level: float
) -> NDArray[np.float64]:
    """Return the power of a two-sided paired t test from the noncentral t distribution (Cohen
    1988)."""
    degrees, shift = count - 1, effect * np.sqrt(count)
    edge = stats.t.ppf(1 - level / 2, degrees)
    upper, lower = stats.nct.sf(edge, degrees, shift), stats.nct.cdf(-edge, degrees, shift)
    # scipy returns NaN where the shift is far beyond the edge: the power is 1 there.
    return np.where(np.isfinite(upper), upper, 1.0) + np.where(np.isfinite(lower), lower, 0.0)
