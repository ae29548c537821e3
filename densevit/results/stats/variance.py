"""The share of the variance that each axis explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from densevit.results.stats.level_grid import ABSENT, encode_levels, rows_of

SHARES = ["source", "share"]


def variance_shares(
    frame: pd.DataFrame,
    cells: pd.DataFrame,
    axes: Sequence[str],
    benchmark: str,
) -> pd.DataFrame:
    """Return the share of top-1's variance between runs that each axis explains (`SHARES`).

    It is eta squared of the main effects in a type II analysis of variance: each sum of squares
    over the sum of all, so that the shares add up to 1. Holes in the grid do not bias it unless an
    axis follows from the others. `seed` is what all cells have in common for a seed; the rest is
    interactions and noise. An axis of k levels gets about (k-1)/runs by chance alone.

    It uses only cells to which all axes with several levels apply. The result is empty if a value
    is not finite, if all are equal, if there are too few runs to leave a residual, or if axes
    cannot be separated (one follows from the others).
    """
    levels, codes = encode_levels(cells, axes)
    several = [place for place, axis in enumerate(axes) if len(levels[axis]) > 1]
    whole = (codes[:, several] != ABSENT).all(axis=1)
    rows = rows_of(frame, benchmark)
    place = pd.Index(cells["cell"]).get_indexer(rows["cell"].astype(object))
    used = (place >= 0) & whole[place]
    names = {f"x{n}": axes[n] for n in several} | {"seed": "seed"}
    table = pd.DataFrame({f"x{n}": codes[place[used], n] for n in several})
    table["seed"] = rows["seed"].to_numpy()[used]
    table["value"] = rows["value"].to_numpy(dtype=float)[used]
    names = {name: source for name, source in names.items() if table[name].nunique() > 1}
    if not names or not np.isfinite(table["value"]).all() or np.ptp(table["value"]) == 0:
        return pd.DataFrame(columns=SHARES)
    squares = _squares(table, list(names))
    if squares is None:
        return pd.DataFrame(columns=SHARES)
    shares = squares / squares.sum()
    rows = [(source, float(shares[name])) for name, source in names.items()]
    rows.append(("interactions and noise", float(shares["Residual"])))
    return pd.DataFrame(rows, columns=SHARES)


def _squares(table: pd.DataFrame, names: Sequence[str]) -> pd.Series | None:
    """Return type II sums of squares by term; None without residuals or for inseparable terms.

    With main effects alone, a term's sum is how much worse the fit is without it: b' C^-1 b, where
    b are its coefficients and C is its block of (X'X)^-1. X'X is small for thousands of runs,
    unlike the X of statsmodels' `anova_lm`, which gives the same numbers (a test compares them).
    """
    columns = [np.ones((len(table), 1))]
    for name in names:
        codes, levels = pd.factorize(table[name])
        columns.append(np.eye(len(levels))[codes][:, 1:])
    ends = np.cumsum([part.shape[1] for part in columns])
    x, y = np.hstack(columns), table["value"].to_numpy() - table["value"].mean()
    gram = x.T @ x
    # The columns are 0 and 1, so X'X is exact, and so is its rank.
    if np.linalg.matrix_rank(gram, hermitian=True) < len(gram) or len(x) == len(gram):
        return None
    inverse = np.linalg.inv(gram)
    fitted = inverse @ (x.T @ y)
    squares = {}
    for name, first, last in zip(names, ends[:-1], ends[1:], strict=True):
        block, own = inverse[first:last, first:last], fitted[first:last]
        squares[name] = float(own @ np.linalg.solve(block, own))
    rest = y - x @ fitted
    return pd.Series(squares | {"Residual": float(rest @ rest)})
