"""Metrics of the predictions in a folder, in its results.json."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from densevit.config.evaluation_names import CLEAN
from densevit.config.probes import probes_by_name
from densevit.runs.directory import RunFolder
from densevit.runs.records import ResultsRecord
from densevit.utils.errors import UserError
from densevit.utils.files import write_json

if TYPE_CHECKING:
    from densevit.evaluate.accuracy import Numbers
    from densevit.evaluate.predictions import Predictions


def compute_metrics(folder: RunFolder, predictions: Predictions) -> Numbers:
    """Compute the metrics of a probe, or of a test set: with the folder's clean predictions."""
    from densevit.evaluate.metrics import score
    from densevit.evaluate.resume import clean_predictions

    probe = probes_by_name().get(predictions.benchmark)
    if probe:
        numbers: Numbers = resolve_name(probe.score)(predictions)
        return numbers
    clean = None if predictions.benchmark in CLEAN else clean_predictions(folder)
    return score(predictions, clean)


def recompute(folder: RunFolder) -> dict[str, Numbers]:
    """Recompute the metrics of all predictions in a folder and write them to results.json.

    Errors: `UserError` if there are no predictions or a file cannot be read.
    """
    from densevit.evaluate.predictions import read_predictions, source_of

    files = sorted((folder.path / "predictions").glob("*.parquet"))
    if not files:
        raise UserError(f"{folder.path}: holds no predictions/*.parquet")
    metrics = {file.stem: compute_metrics(folder, read_predictions(file)) for file in files}
    merge_metrics(folder, metrics, source_of(files[0]) or folder.path.name)
    return metrics


def merge_metrics(folder: RunFolder, metrics: dict[str, Numbers], model: str) -> None:
    results = folder.results() or ResultsRecord(model=model, benchmarks={})
    results["benchmarks"] = {**results["benchmarks"], **metrics}
    write_json(folder.results_file, results)
