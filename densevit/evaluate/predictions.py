"""Predictions of a network on a test set, one row per image, stored as Parquet. Imports no torch.

All metrics are computed from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from densevit.data.image_files import printable
from densevit.utils.errors import RunError, UserError, reason_of
from densevit.utils.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

_AMONG = "among_"


@dataclass(frozen=True)
class ClassPredictions:
    """A predicted class for each of n images of a test set.

    samples: (n,) image ids. labels: (n,) indices of `classes`, the benchmark's own.
    top: (n, k) the classes with the highest `probabilities` (n, k), most probable first, of equal
        ones the first class; k is 5, or the number of classes if that is less. Both are among the
        benchmark's classes. -1: a probe ranks no further class.
    losses: (n,) cross-entropy in nats.
    anywhere: (n,) the prediction among all classes of the network, as an index of `classes`, -1 for
        any other class; None if the benchmark has all the network's classes.
    among: predictions within further sets of classes, by name; -1 for an image of another class.
    layout: a name of `known_benchmarks.LAYOUTS`, or "".
    """

    benchmark: str
    classes: tuple[str, ...]
    samples: Sequence[str]
    labels: NDArray[np.int32]
    top: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    losses: NDArray[np.float32]
    anywhere: NDArray[np.int32] | None
    among: Mapping[str, NDArray[np.int32]]
    layout: str = ""

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Return (n,) True where the most probable class is the image's."""
        hits: NDArray[np.bool_] = self.top[:, 0] == self.labels
        return hits

    def select(self, rows: NDArray[np.intp]) -> ClassPredictions:
        """Return the predictions at some rows, in their order."""
        return replace(
            self,
            samples=[self.samples[row] for row in rows.tolist()],
            labels=self.labels[rows],
            top=self.top[rows],
            probabilities=self.probabilities[rows],
            losses=self.losses[rows],
            anywhere=None if self.anywhere is None else self.anywhere[rows],
            among={name: values[rows] for name, values in self.among.items()},
        )


@dataclass(frozen=True)
class MultiLabelPredictions:
    """The predicted classes of each of n images that may show several.

    samples: (n,) image ids. labels: (n, C) 1 for each class of an image, else 0. probabilities:
    (n, C) of each class, independent of the others. losses: (n,) the sum of the binary
    cross-entropies in nats.
    """

    benchmark: str
    classes: tuple[str, ...]
    samples: Sequence[str]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    losses: NDArray[np.float32]


@dataclass(frozen=True)
class MaskPredictions:
    """Predicted masks of n images as pixel counts by class (n, C), without void pixels.

    right: the class in both mask and prediction. predicted: the class in the prediction.
    labelled: the class in the mask.
    """

    benchmark: str
    classes: tuple[str, ...]
    samples: Sequence[str]
    right: NDArray[np.int32]
    predicted: NDArray[np.int32]
    labelled: NDArray[np.int32]


ImagePredictions = ClassPredictions | MultiLabelPredictions
Predictions = ImagePredictions | MaskPredictions


def check_finite(predictions: ImagePredictions) -> None:
    """Raise `RunError` if outputs are not finite: their argmax would pass for a prediction."""
    if not np.isfinite(predictions.losses).all():
        raise RunError(f"{predictions.benchmark}: the network's outputs are not finite numbers")


def write_predictions(predictions: Predictions, path: Path, source: str = "") -> None:
    """Write predictions as Parquet; the metadata holds class names and `source`, their network.

    `ClassPredictions` have the columns sample, label, loss, top5, probabilities, and if they apply
    anywhere and among_NAME; `MultiLabelPredictions` have sample, labels, loss, probabilities;
    `MaskPredictions` have sample, right, predicted, labelled.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [each if each.isascii() else printable(each) for each in predictions.samples]
    columns = {"sample": pa.array(names, pa.string())}
    layout = ""
    if isinstance(predictions, MaskPredictions):
        for name in ("right", "predicted", "labelled"):
            columns[name] = _lists(getattr(predictions, name))
    elif isinstance(predictions, MultiLabelPredictions):
        columns |= {
            "labels": _lists(predictions.labels),
            "loss": pa.array(predictions.losses, pa.float32()),
            "probabilities": _lists(predictions.probabilities),
        }
    else:
        columns |= _columns(predictions)
        layout = predictions.layout
    metadata = {
        "benchmark": predictions.benchmark,
        "classes": json.dumps(predictions.classes),
        "layout": layout,
        "source": source,
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)


def _columns(predictions: ClassPredictions) -> dict[str, pa.Array]:
    import pyarrow as pa

    columns = {
        "label": pa.array(predictions.labels, pa.int32()),
        "loss": pa.array(predictions.losses, pa.float32()),
        "top5": _lists(predictions.top),
        "probabilities": _lists(predictions.probabilities),
    }
    if predictions.anywhere is not None:
        columns["anywhere"] = pa.array(predictions.anywhere, pa.int32())
    for name, values in predictions.among.items():
        columns[f"{_AMONG}{name}"] = pa.array(values, pa.int32())
    return columns


def source_of(path: Path) -> str | None:
    """Return the `source` of the predictions in a file; None if there is no readable file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata: Mapping[bytes, bytes] = pq.read_schema(path).metadata or {}
        return metadata.get(b"source", b"").decode()
    except (OSError, pa.ArrowException):
        return None


def read_predictions(path: Path) -> Predictions:
    """Read predictions from a file. Errors: `UserError` if it is missing or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _from_table(pq.read_table(path))
    except KeyError as error:
        raise UserError(
            f"{path}: cannot be read as predictions: it lacks {error}; evaluate again"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        reason = reason_of(error)
        raise UserError(f"{path}: cannot be read as predictions: {reason}") from None


def read_image_predictions(path: Path) -> ImagePredictions:
    """Read predictions of whole images from a file. Errors: `UserError`, also for masks."""
    predictions = read_predictions(path)
    if isinstance(predictions, MaskPredictions):
        raise UserError(f"{path}: holds predicted masks, not classes")
    return predictions


def _from_table(table: pa.Table) -> Predictions:
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    benchmark, classes = metadata["benchmark"], tuple(json.loads(metadata["classes"]))
    samples = columns["sample"].to_pylist()
    if "right" in columns:
        counts = (_rows(columns[name]) for name in ("right", "predicted", "labelled"))
        return MaskPredictions(benchmark, classes, samples, *counts)
    if "labels" in columns:
        labels, probabilities = _rows(columns["labels"]), _rows(columns["probabilities"])
        losses = columns["loss"].to_numpy()
        return MultiLabelPredictions(benchmark, classes, samples, labels, probabilities, losses)
    anywhere = columns.get("anywhere")
    return ClassPredictions(
        benchmark,
        classes,
        samples,
        labels=columns["label"].to_numpy(),
        top=_rows(columns["top5"]),
        probabilities=_rows(columns["probabilities"]),
        losses=columns["loss"].to_numpy(),
        anywhere=None if anywhere is None else anywhere.to_numpy(),
        among={
            name.removeprefix(_AMONG): column.to_numpy()
            for name, column in columns.items()
            if name.startswith(_AMONG)
        },
        layout=metadata["layout"],
    )


def joined(parts: Sequence[ImagePredictions]) -> ImagePredictions:
    """Concatenate the predictions of several parts of a test set, in order."""
    first = parts[0]
    common: dict[str, Any] = {
        "samples": [sample for part in parts for sample in part.samples],
        **{name: _joined(parts, name) for name in ("labels", "probabilities", "losses")},
    }
    if isinstance(first, MultiLabelPredictions):
        return replace(first, **common)
    return replace(
        first,
        **common,
        top=_joined(parts, "top"),
        anywhere=None if first.anywhere is None else _joined(parts, "anywhere"),
        among={n: np.concatenate([part.among[n] for part in parts]) for n in first.among},  # type: ignore[union-attr]  # all are of one kind
    )


def _joined(parts: Sequence[ImagePredictions], name: str) -> NDArray[Any]:
    return np.concatenate([getattr(part, name) for part in parts])


def _lists(values: NDArray[Any]) -> pa.Array:
    """Convert (n, k) to a column of lists."""
    import pyarrow as pa

    rows, width = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)))


def _rows(column: pa.Array) -> NDArray[Any]:
    """Convert a column of lists to (n, k)."""
    flat: NDArray[Any] = column.flatten().to_numpy()
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 1)
