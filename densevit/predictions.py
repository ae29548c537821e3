"""What a network answered on a test set, a row a picture: kept as Parquet, and all that its numbers
are computed from. Imports no torch.

A class a picture makes `Answers`, a class a pixel `Areas`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from densevit.errors import RunError, UserError
from densevit.rundir import replacing

_AMONG = "among_"
_AREAS = ("right", "predicted", "labelled")


@dataclass(frozen=True)
class Answers:
    """n pictures of a test set and the answers to them.

    samples: (n,) their ids. labels: (n,) indices of `classes`, the benchmark's own.
    top: (n, k) the classes with the highest `probabilities` (n, k), most probable first; k is 5, or
        the number of classes where that is less. Both are among the benchmark's classes.
    losses: (n,) cross-entropy in nats.
    anywhere: (n,) the answer among everything that the network knows, as an index of `classes`, and
        -1 for what is none of them; None where the benchmark has all the network's classes.
    among: the answer within further sets of classes, by name; -1 for a picture of another class.
    layout: that of `data.layouts.LAYOUTS`, "" for another.
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


@dataclass(frozen=True)
class Areas:
    """Pixels of n pictures with masks, by class (n, C), without those that are void.

    right: of the class in the mask and in the prediction. predicted: of the class in the
    prediction. labelled: of the class in the mask.
    """

    benchmark: str
    classes: tuple[str, ...]
    samples: Sequence[str]
    right: NDArray[np.int32]
    predicted: NDArray[np.int32]
    labelled: NDArray[np.int32]


def check_finite(answers: Answers) -> None:
    """Errors: `RunError` where the network gave no numbers, whose order would pass for answers."""
    if not np.isfinite(answers.losses).all():
        raise RunError(f"{answers.benchmark}: the network's outputs are not finite numbers")


def write_answers(answers: Answers | Areas, path: Path, source: str = "") -> None:
    """A Parquet file; the class names are in its metadata, and `source`: what gave the answers.

    Of `Answers` it has the columns sample, label, loss, top5, probabilities, and where they apply
    anywhere and among_NAME; of `Areas` sample, right, predicted, labelled.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"sample": pa.array(answers.samples, pa.string())}
    if isinstance(answers, Areas):
        columns |= {name: _lists(getattr(answers, name)) for name in _AREAS}
    else:
        columns |= _columns(answers)
    about = {
        "benchmark": answers.benchmark,
        "classes": json.dumps(answers.classes),
        "layout": "" if isinstance(answers, Areas) else answers.layout,
        "source": source,
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns).replace_schema_metadata(about), temporary)


def _columns(answers: Answers) -> dict[str, object]:
    import pyarrow as pa

    columns = {
        "label": pa.array(answers.labels, pa.int32()),
        "loss": pa.array(answers.losses, pa.float32()),
        "top5": _lists(answers.top),
        "probabilities": _lists(answers.probabilities),
    }
    if answers.anywhere is not None:
        columns["anywhere"] = pa.array(answers.anywhere, pa.int32())
    for name, values in answers.among.items():
        columns[f"{_AMONG}{name}"] = pa.array(values, pa.int32())
    return columns


def source_of(path: Path) -> str | None:
    """What gave the answers in a file; None where there is no file that can be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return (pq.read_schema(path).metadata or {}).get(b"source", b"").decode()
    except (OSError, pa.ArrowException):
        return None


def read_answers(path: Path) -> Answers | Areas:
    """What a file holds. Errors: `UserError` if it is missing or no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        about = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        common = {
            "benchmark": about["benchmark"],
            "classes": tuple(json.loads(about["classes"])),
            "samples": columns["sample"].to_pylist(),
        }
        if _AREAS[0] in columns:
            return Areas(**common, **{name: _rows(columns[name]) for name in _AREAS})
        anywhere = columns.get("anywhere")
        return Answers(
            **common,
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
            layout=about["layout"],
        )
    except KeyError as error:
        raise UserError(
            f"{path}: cannot be read as predictions: it lacks {error}; evaluate again"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as predictions: {reason}") from None


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several parts of a test set, in their order."""
    first = parts[0]

    def together(name: str) -> NDArray:
        return np.concatenate([getattr(part, name) for part in parts])

    return replace(
        first,
        samples=[sample for part in parts for sample in part.samples],
        **{name: together(name) for name in ("labels", "top", "probabilities", "losses")},
        anywhere=None if first.anywhere is None else together("anywhere"),
        among={n: np.concatenate([part.among[n] for part in parts]) for n in first.among},
    )


def _lists(values: NDArray) -> object:
    """(n, k) as a column of lists."""
    import pyarrow as pa

    rows, width = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width, pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)))


def _rows(column: object) -> NDArray:
    flat = column.flatten().to_numpy()
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 1)
