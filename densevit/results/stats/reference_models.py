"""Published accuracies of reference models, the basis of effective robustness."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from densevit.config.evaluation_names import CLEAN
from densevit.utils.errors import UserError

SHIPPED = Path(__file__).parents[2] / "data" / "reference_models.csv"

# Test sets with 200 of ImageNet's classes, where a model chooses among these 200. Their clean
# accuracy must be among the same 200: the metric `top1_NAME` of the clean test set. The images of
# -A are those that a ResNet-50 gets wrong, so models follow its line less closely than others.
AMONG_200 = ("imagenet-a", "imagenet-r")


def benchmarks_of(models: pd.DataFrame) -> list[str]:
    """Return the shifted test sets among the columns of reference models."""
    return [c for c in models.columns if c not in ("model", *CLEAN) and not c.endswith("-clean")]


def read_references(path: Path | None = None) -> pd.DataFrame:
    """Return one row per reference model: `model`, and accuracies in percent (NaN: unmeasured).

    Without a path they are the shipped models, trained on ImageNet-1k alone; the file names the
    models and the sources. A user's CSV has the columns `model`, the clean accuracy, one or more
    benchmarks, and with `imagenet-a` or `-r` also `imagenet-a-clean` or `-r-clean`; a field may be
    empty, and `#` starts a comment line. If the clean accuracy is called `imagenet`, its models are
    appended to the shipped ones; if `val`, they belong to another data set and replace them.

    Errors: `UserError` naming the file and the line.
    """
    models = _read(SHIPPED)
    if path is None:
        return models
    own = _read(path, taken=set(models["model"]))
    if CLEAN[0] not in own:
        return own
    return pd.concat([models, own], ignore_index=True)


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
            raise UserError(f"{where}: expected {len(columns)} fields, found {len(fields)}")
        name = row.pop("model")
        if not name or name in rows or name in taken:
            raise UserError(f"{where}: model: expected a unique name, found {name!r}")
        rows[name] = [_percent(text, f"{where}: {column}") for column, text in row.items()]
    names = [column for column in columns if column != "model"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names, dtype=float)
    return table.rename_axis("model").reset_index()


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the line number and the fields of each line except comments; at least the header."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {why} (expected a CSV of reference models)") from None
    lines = [
        (number, [field.strip() for field in next(csv.reader([line]))])
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise UserError(f"{path}: is empty (expected a CSV of reference models)")
    return lines


def _fault(columns: list[str]) -> str:
    """Return the error in a file's header; empty if there is none."""
    for column in columns:
        if not column or columns.count(column) > 1:
            return f"expected each column named once, found {column!r} empty or more than once"
    if "model" not in columns:
        return "lacks the column model"
    if sum(name in columns for name in CLEAN) != 1:
        return f"expected one column of clean accuracy, {' or '.join(CLEAN)}"
    missing = [n for n in AMONG_200 if n in columns and f"{n}-clean" not in columns]
    if missing:
        return f"lacks the column {missing[0]}-clean (clean accuracy among the same 200 classes)"
    return "" if benchmarks_of(pd.DataFrame(columns=columns)) else "lacks a column of a benchmark"


def _percent(text: str, where: str) -> float:
    """Return a field's number; NaN for an empty field."""
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise UserError(f"{where}: expected an accuracy in percent, 0 to 100, found {text!r}")
    return value
