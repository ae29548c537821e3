"""The probes of frozen features: a record for each, without its code, which needs torch.

To add a probe, write a file like `densevit.evaluate.probes.knn` and list it in `PROBES`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError

from densevit.config.metrics import CLASSIFICATION, MULTILABEL, SEGMENTATION, Metric


@dataclass(frozen=True)
class Probe:
    """A probe of a frozen network.

    name: its name in the field `probes`, in results.json and in reports.
    tokens: the features that it reads: the CLS token, the mean patch, or all patches.
    predict: MODULE:FUNCTION, from a `ProbeInput` (`densevit.evaluate.probes.run`) to predictions.
    metrics: its metrics, the main one first.
    score: MODULE:FUNCTION, from the predictions to the numbers in results.json.
    masks: it is fitted to images with masks (field `masks`), not to the labels of train and val.
    watchable: it is fast enough to run while the network trains (field `watched`).
    """

    name: str
    tokens: Literal["cls", "patch", "patches"]
    predict: str
    metrics: tuple[Metric, ...] = CLASSIFICATION
    score: str = "densevit.evaluate.metrics:score"
    masks: bool = False
    watchable: bool = False


_KNN = "densevit.evaluate.probes.knn:predict"
_LINEAR = "densevit.evaluate.probes.linear:predict"
_SEGMENTATION = "densevit.evaluate.probes.segmentation:predict"

PROBES = (
    Probe("knn", "cls", _KNN, watchable=True),
    Probe("knn-patch", "patch", _KNN, watchable=True),
    Probe("linear-probe", "cls", _LINEAR),
    Probe("linear-probe-patch", "patch", _LINEAR),
    Probe("dense-probe", "patches", _SEGMENTATION, SEGMENTATION, masks=True),
)


def probes_by_name() -> dict[str, Probe]:
    return {probe.name: probe for probe in PROBES}


def _check_name(value: Any) -> Any:
    """Raise the error of a `Literal` of the names: the list may grow after the class is made."""
    names = probes_by_name()
    if not isinstance(value, str) or value not in names:
        raise PydanticKnownError("literal_error", {"expected": ", ".join(map(repr, names))})
    return value


ProbeName = Annotated[str, BeforeValidator(_check_name)]


def metrics_of(name: str) -> tuple[Metric, ...]:
    """Return the metrics of a probe or, for another name, of a test set; the main one first."""
    probe = probes_by_name().get(name)
    return probe.metrics if probe else CLASSIFICATION


def main_metric(name: str, numbers: Collection[str]) -> Metric:
    """Return the main metric of a probe or test set, of the metrics that it has."""
    return next(m for m in (*MULTILABEL, *metrics_of(name)) if m.name in numbers)
