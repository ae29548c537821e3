"""Effective robustness: accuracy on a shifted test set beyond what clean accuracy predicts.

Across models, accuracy on a shifted test set follows clean accuracy closely along a line on the
logit scale. A model is robust as far as it lies above the line of reference models: Taori et al.,
"Measuring Robustness to Natural Distribution Shifts in Image Classification" (2020), section 3;
Miller et al., "Accuracy on the Line" (2021). All accuracies here are top-1 in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from densevit.config.evaluation_names import CLEAN
from densevit.results.stats.reference_models import AMONG_200, benchmarks_of, read_references
from densevit.utils.errors import UserError

LEAST = 3  # models: two always lie on a line
IMAGES = 10_000  # images of ImageNet-V2, the smallest set with 1000 classes

EFFECTIVE = ["run", "benchmark", "effective", "predicted", "clean", "extrapolated", "spread"]


class Line(NamedTuple):
    """logit(shifted) = slope * logit(clean) + intercept, with accuracies as fractions, fitted to n
    models. r2 is the explained share of the variance on the logit scale (NaN if it is zero)."""

    slope: float
    intercept: float
    n: int
    r2: float

    def predict(self, clean: ArrayLike, images: int = IMAGES) -> NDArray[np.float64]:
        """Return the accuracy on the shifted test set predicted from clean accuracy, in percent.

        `images` as in `fit_line`.
        """
        return 100 / (1 + np.exp(-(self.slope * _logit(clean, images) + self.intercept)))


def fit_line(clean: ArrayLike, shifted: ArrayLike, images: int = IMAGES) -> Line:
    """Fit the least-squares line of shifted on clean accuracy, (M,) each in percent, on logits.

    Models that lack one of the two (NaN) are dropped. The logit of 0 or 100 % is infinite, so such
    accuracies are moved inwards by half an image of the `images` in the test set.

    Errors: `UserError` for fewer than `LEAST` models, or if all have the same clean accuracy.
    """
    x, y = _logit(clean, images), _logit(shifted, images)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < LEAST:
        raise UserError(f"a line needs at least {LEAST} reference models, found {len(x)}")
    if np.ptp(x) == 0:
        raise UserError(f"a line needs models of different clean accuracy, found {len(x)} alike")
    from scipy.stats import linregress

    found = linregress(x, y)
    return Line(float(found.slope), float(found.intercept), len(x), float(found.rvalue) ** 2)


def effective(frame: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """Return the effective robustness of runs, one row per run and benchmark (`EFFECTIVE`).

    `frame` has the columns run, benchmark, metric, value, and n (images) if known, as `collect`
    returns them. `references` are `read_references()`, or `as_references` of a baseline's runs for
    data sets without published models.

    `clean` is the accuracy that the prediction starts from: on `imagenet`, else on `val`; for -A
    and -R among the same 200 classes. `extrapolated`: it is outside the range of the reference
    models. `spread` is the standard deviation of the reference models around the line, in points. A
    run with a NaN among its two accuracies has NaN. There is no row if a run lacks the
    benchmark or its clean counterpart, or if no reference model has both: accuracy among other
    classes would give a number, but a wrong one.

    Errors: `UserError` if only one or two reference models have both, or all are equally accurate.
    """
    names = CLEAN if CLEAN[0] in references else CLEAN[1:]
    runs = as_references(frame)
    parts = [pd.DataFrame(columns=EFFECTIVE)]
    for benchmark in benchmarks_of(runs):
        known, measured = (_pairs(models, benchmark, names) for models in (references, runs))
        if known.empty or measured.empty:
            continue
        images = _images(frame, benchmark)
        try:
            line = fit_line(known["clean"], known["shifted"], images)
        except UserError as error:
            raise UserError(f"--references: effective robustness on {benchmark}: {error}") from None
        predicted = line.predict(measured["clean"], images)
        part = measured.rename(columns={"model": "run"}).assign(
            benchmark=benchmark,
            effective=measured["shifted"] - predicted,
            predicted=predicted,
            extrapolated=~measured["clean"].between(known["clean"].min(), known["clean"].max()),
            spread=_spread(line, known, images),
        )
        parts.append(part[EFFECTIVE])
        diverged = _diverged(frame, benchmark, names)
        if diverged:
            undefined = dict.fromkeys(("effective", "predicted", "clean"), math.nan)
            rows = pd.DataFrame({"run": diverged, "benchmark": benchmark, "extrapolated": False})
            rows["spread"] = part["spread"].iloc[0]
            parts.append(rows.assign(**undefined)[EFFECTIVE])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _spread(line: Line, known: pd.DataFrame, images: int) -> float:
    """Return the residual standard deviation of a line in points; two parameters were fitted."""
    residuals = known["shifted"] - line.predict(known["clean"], images)
    return math.sqrt(float((residuals**2).sum()) / (len(residuals) - 2))


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without ImageNet benchmarks whose number of classes differs from the
    published one: 200 for -A and -R, 1000 for the others and for clean accuracy.

    With a hundred classes a network scores higher on each of them for that reason alone.
    """
    published = benchmarks_of(read_references())
    names = frame["benchmark"]
    if not names.isin(published).any():
        return frame
    ways = _wide(frame, "ways")
    clean = _first(ways, CLEAN)
    expected = pd.Series({name: 200 if name in AMONG_200 else 1000 for name in ways.columns})
    alike = (ways == expected).mul(clean == 1000, axis=0).stack()
    rows = pd.MultiIndex.from_frame(frame[["run", "benchmark"]])
    same_classes = alike.reindex(rows, fill_value=False).to_numpy(dtype=bool)
    return frame[~names.isin(published) | same_classes]


def as_references(frame: pd.DataFrame) -> pd.DataFrame:
    """Return runs in the form of `read_references`, one row per run; `frame` as in `effective`."""
    table = _wide(frame, "top1")
    for name in AMONG_200:
        table[f"{name}-clean"] = _first(_wide(frame, f"top1_{name}"), CLEAN)
    table["imagenet-real"] = _first(_wide(frame, "real_top1"), CLEAN)
    return table.dropna(axis=1, how="all").rename_axis("model").reset_index()


def _logit(percent: ArrayLike, images: int) -> NDArray[np.float64]:
    edge = 0.5 / images
    share = np.clip(np.asarray(percent, dtype=np.float64) / 100, edge, 1 - edge)
    return np.log(share / (1 - share))


def _pairs(models: pd.DataFrame, benchmark: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the columns model, clean and shifted, of the models that have both."""
    if benchmark in AMONG_200:
        names = [f"{benchmark}-clean"]
    pairs = pd.DataFrame({"model": models["model"], "clean": _first(models, names)})
    pairs["shifted"] = _first(models, [benchmark])
    return pairs.dropna()


def _diverged(frame: pd.DataFrame, benchmark: str, clean: Sequence[str]) -> list[str]:
    """Return the runs that have both accuracies, one of which is NaN."""
    chosen = frame[(frame["metric"] == "top1") & frame["benchmark"].isin([benchmark, *clean])]
    shifted = chosen["benchmark"] == benchmark
    both = set(chosen.loc[shifted, "run"]) & set(chosen.loc[~shifted, "run"])
    return list(chosen.loc[chosen["value"].isna() & chosen["run"].isin(both), "run"].unique())


def _first(table: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """Return the first value of each row among the columns that is not NaN; else NaN."""
    return table.reindex(columns=list(names)).astype(float).bfill(axis=1).iloc[:, 0]


def _wide(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return runs by benchmarks, both in the order of the frame."""
    wide = frame[frame["metric"] == metric].pivot(index="run", columns="benchmark", values="value")
    columns = [name for name in frame["benchmark"].unique() if name in wide]
    return wide.reindex(index=frame["run"].unique(), columns=columns)


def _images(frame: pd.DataFrame, benchmark: str) -> int:
    """Return the number of images of the smaller one of a benchmark and the clean test set."""
    both = frame["benchmark"].isin([benchmark, *CLEAN])
    return int(frame.loc[both, "n"].min()) if "n" in frame else IMAGES
