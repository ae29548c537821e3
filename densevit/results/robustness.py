"""Effective robustness: how much better a model is on a shifted test set than its clean accuracy
lets expect.

Across models, accuracy on a shifted test set follows clean accuracy closely along a line on the
logit scale. A model is robust in so far as it lies above the line of reference models: Taori et
al., "Measuring Robustness to Natural Distribution Shifts in Image Classification" (2020), section
3; Miller et al., "Accuracy on the Line" (2021). All accuracies here are top-1 in percent.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from densevit.data.names import CLEAN
from densevit.errors import UserError

SHIPPED = Path(__file__).parent.parent / "data" / "reference_models.csv"
# Test sets of 200 of ImageNet's classes, chosen among these: the same must hold of their clean
# accuracy, which is the metric `top1_NAME` of the clean test set. The pictures of -A are those that
# a ResNet-50 gets wrong, which is why models follow its line less closely than the others'.
AMONG_200 = ("imagenet-a", "imagenet-r")
LEAST = 3  # models: two always lie on a line
PICTURES = 10_000  # of ImageNet-V2, the smallest with 1000 classes

EFFECTIVE = ["run", "benchmark", "effective", "predicted", "clean", "extrapolated"]


class Line(NamedTuple):
    """logit(shifted) = slope * logit(clean) + intercept, accuracies as shares; fitted to n models,
    of whose variance on the logit scale it explains the share r2 (NaN where there is none)."""

    slope: float
    intercept: float
    n: int
    r2: float

    def predict(self, clean: ArrayLike, pictures: int = PICTURES) -> NDArray[np.float64]:
        """Accuracy on the shifted test set in percent, expected from clean accuracy in percent.

        `pictures` as in `fit_line`.
        """
        return 100 / (1 + np.exp(-(self.slope * _logit(clean, pictures) + self.intercept)))


def fit_line(clean: ArrayLike, shifted: ArrayLike, pictures: int = PICTURES) -> Line:
    """The least-squares line of shifted on clean accuracy, (M,) each in percent, on logits.

    Models that lack one of the two (NaN) are left out. The logit of 0 or 100 % is infinite: such
    accuracies are moved inwards by half a picture of the `pictures` that they were measured on.

    Errors: `UserError` for fewer than `LEAST` models, or all of the same clean accuracy.
    """
    x, y = _logit(clean, pictures), _logit(shifted, pictures)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if len(x) < LEAST:
        raise UserError(f"a line needs at least {LEAST} reference models, found {len(x)}")
    if np.ptp(x) == 0:
        raise UserError(f"a line needs models of different clean accuracy, found {len(x)} alike")
    from scipy.stats import linregress

    found = linregress(x, y)
    return Line(float(found.slope), float(found.intercept), len(x), float(found.rvalue) ** 2)


def effective_robustness(clean: float, shifted: float, line: Line) -> float:
    """Accuracy on the shifted test set less what the line expects, in percentage points."""
    return float(shifted - line.predict(clean))


def effective(frame: pd.DataFrame, references: pd.DataFrame | None = None) -> pd.DataFrame:
    """Effective robustness of runs: a row a run and benchmark (`EFFECTIVE`).

    `frame` has the columns run, benchmark, metric, value, and n (pictures) if known, as
    `results.collect` gives them. `references` are `read_references()`, or, for data sets of which
    there are no published models, `as_references` of the runs of a baseline.

    `clean` is the accuracy that the line starts from: on `imagenet` or else on `val`; for -A and -R
    that among the same 200 classes. `extrapolated`: it lies outside those of the reference models.
    A run of which one of the two is no number has NaN. There is no row where a run lacks the
    benchmark or its clean counterpart, or where no reference
    model has both: accuracy among other classes would give a number, but a wrong one.

    Errors: `UserError` where only one or two reference models have both, or all are equally
    accurate.
    """
    references = read_references() if references is None else references
    names = CLEAN if CLEAN[0] in references else CLEAN[1:]
    runs = as_references(frame)
    parts = [pd.DataFrame(columns=EFFECTIVE)]
    for benchmark in benchmarks_of(runs):
        known, measured = (_pairs(models, benchmark, names) for models in (references, runs))
        if known.empty or measured.empty:
            continue
        pictures = _pictures(frame, benchmark)
        try:
            line = fit_line(known["clean"], known["shifted"], pictures)
        except UserError as error:
            raise UserError(f"effective robustness on {benchmark}: {error}") from None
        predicted = line.predict(measured["clean"], pictures)
        part = measured.rename(columns={"model": "run"}).assign(
            benchmark=benchmark,
            effective=measured["shifted"] - predicted,
            predicted=predicted,
            extrapolated=~measured["clean"].between(known["clean"].min(), known["clean"].max()),
        )
        parts.append(part[EFFECTIVE])
        lost = _diverged(frame, benchmark, names)
        if len(lost):
            none = dict.fromkeys(("effective", "predicted", "clean"), math.nan)
            rows = pd.DataFrame({"run": lost, "benchmark": benchmark, "extrapolated": False})
            parts.append(rows.assign(**none)[EFFECTIVE])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows without those of ImageNet's benchmarks whose accuracy is among other numbers of
    classes than published: 200 for -A and -R, 1000 for the others and for clean accuracy.

    A network of a hundred classes is better on each of them by that alone.
    """
    published = benchmarks_of(read_references())
    names = frame["benchmark"]
    if not names.isin(published).any():
        return frame
    ways = _wide(frame, "ways")
    clean = _first(ways, CLEAN)
    wanted = pd.Series({name: 200 if name in AMONG_200 else 1000 for name in ways.columns})
    alike = (ways == wanted).mul(clean == 1000, axis=0).stack()
    asked = pd.MultiIndex.from_frame(frame[["run", "benchmark"]])
    kept = alike.reindex(asked, fill_value=False).to_numpy(dtype=bool)
    return frame[~names.isin(published) | kept]


def as_references(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs in the form of `read_references`, a row a run; `frame` is that of `effective`."""
    table = _wide(frame, "top1")
    for name in AMONG_200:
        table[f"{name}-clean"] = _first(_wide(frame, f"top1_{name}"), CLEAN)
    table["imagenet-real"] = _first(_wide(frame, "real_top1"), CLEAN)
    return table.dropna(axis=1, how="all").rename_axis("model").reset_index()


def benchmarks_of(models: pd.DataFrame) -> list[str]:
    """The shifted test sets among the columns of reference models."""
    return [c for c in models.columns if c not in ("model", *CLEAN) and not c.endswith("-clean")]


def read_references(path: Path | None = None) -> pd.DataFrame:
    """Reference models, a row each: `model`, and accuracies in percent (NaN: not measured).

    Without a path those that are shipped, trained on ImageNet-1k alone; the file says which and
    where the figures are from. A CSV of one's own has the columns `model`, the clean accuracy, one
    or more benchmarks, and with `imagenet-a` or `-r` also `imagenet-a-clean` or `-r-clean`; a field
    may be empty and `#` begins a line of comment. If its clean accuracy is called `imagenet`, its
    models are appended to those shipped; if `val`, they are of another data set and stand alone.

    Errors: `UserError` naming the file and the line.
    """
    models = _read(SHIPPED)
    if path is None:
        return models
    own = _read(path, taken=set(models["model"]))
    if CLEAN[0] not in own:
        return own
    return pd.concat([models, own], ignore_index=True)


def _logit(percent: ArrayLike, pictures: int) -> NDArray[np.float64]:
    edge = 0.5 / pictures
    share = np.clip(np.asarray(percent, dtype=np.float64) / 100, edge, 1 - edge)
    return np.log(share / (1 - share))


def _pairs(models: pd.DataFrame, benchmark: str, names: Sequence[str]) -> pd.DataFrame:
    """The columns model, clean and shifted, of the models that have both."""
    if benchmark in AMONG_200:
        names = [f"{benchmark}-clean"]
    pairs = pd.DataFrame({"model": models["model"], "clean": _first(models, names)})
    pairs["shifted"] = _first(models, [benchmark])
    return pairs.dropna()


def _diverged(frame: pd.DataFrame, benchmark: str, clean: Sequence[str]) -> list[str]:
    """The runs that have both accuracies, of which one is no number."""
    chosen = frame[(frame["metric"] == "top1") & frame["benchmark"].isin([benchmark, *clean])]
    shifted = chosen["benchmark"] == benchmark
    both = set(chosen.loc[shifted, "run"]) & set(chosen.loc[~shifted, "run"])
    return list(chosen.loc[chosen["value"].isna() & chosen["run"].isin(both), "run"].unique())


def _first(table: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """Of each row the first of the columns that has a number, NaN where none is there."""
    return table.reindex(columns=list(names)).astype(float).bfill(axis=1).iloc[:, 0]


def _wide(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Runs by benchmarks, each in the order of the frame."""
    wide = frame[frame["metric"] == metric].pivot(index="run", columns="benchmark", values="value")
    columns = [name for name in frame["benchmark"].unique() if name in wide]
    return wide.reindex(index=frame["run"].unique(), columns=columns)


def _pictures(frame: pd.DataFrame, benchmark: str) -> int:
    """How many pictures the smaller of a benchmark and the clean test set has."""
    concerned = frame["benchmark"].isin([benchmark, *CLEAN])
    return int(frame.loc[concerned, "n"].min()) if "n" in frame else PICTURES


def _read(path: Path, taken: Collection[str] = ()) -> pd.DataFrame:
    lines = _lines(path)
    _, columns = lines[0]
    fault = _fault(columns)
    if fault:
        raise UserError(f"{path}:{lines[0][0]}: {fault}")
    rows: dict[str, list[float]] = {}
    for number, fields in lines[1:]:
        where = f"{path}:{number}"
        row = dict(zip(columns, fields, strict=False))
        if len(fields) != len(columns):
            raise UserError(f"{where}: wanted {len(columns)} fields, found {len(fields)}")
        name = row.pop("model")
        if not name or name in rows or name in taken:
            raise UserError(f"{where}: model: wanted a name of its own, found {name!r}")
        rows[name] = [_percent(text, f"{where}: {column}") for column, text in row.items()]
    names = [column for column in columns if column != "model"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names, dtype=float)
    return table.rename_axis("model").reset_index()


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The fields of each line, and its number, without comments; at least that of the head."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {why} (wanted a CSV of reference models)") from None
    lines = [
        (number, [field.strip() for field in next(csv.reader([line]))])
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise UserError(f"{path}: is empty (wanted a CSV of reference models)")
    return lines


def _fault(columns: list[str]) -> str:
    """What is wrong with the head of a file."""
    for column in columns:
        if not column or columns.count(column) > 1:
            return f"wanted each column named once, found {column!r} more than once or empty"
    if "model" not in columns:
        return "lacks the column model"
    if sum(name in columns for name in CLEAN) != 1:
        return f"wanted one column of clean accuracy, {' or '.join(CLEAN)}"
    missing = [n for n in AMONG_200 if n in columns and f"{n}-clean" not in columns]
    if missing:
        return f"lacks the column {missing[0]}-clean (clean accuracy among the same 200 classes)"
    return "" if benchmarks_of(pd.DataFrame(columns=columns)) else "lacks a column of a benchmark"


def _percent(text: str, where: str) -> float:
    """A field's number, NaN for an empty one."""
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise UserError(f"{where}: wanted an accuracy in percent, 0 to 100, found {text!r}")
    return value
