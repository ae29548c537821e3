"""Many points into one run of an MLflow store, so that a metric never has a hole in it."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

BATCH = 1000  # points a call, MLflow's limit
MANY = 40_000  # from here on two processes are worth their start
_PROCESSES = 2
_T = TypeVar("_T")


def log_points(client: MlflowClient, uri: str, mlflow_id: str, points: Sequence[Metric]) -> None:
    """Send points, those of each metric in their order.

    A metric's last step in the store thus says how far it was sent, wherever this was interrupted.
    """
    if len(points) < MANY:
        with _without_collection():
            for batch in _batches(points):
                client.log_batch(mlflow_id, metrics=batch)
        return
    # Most of the time goes into Python, here and in the server, and not into the database.
    keys = sorted({point.key for point in points})
    parts = [set(keys[number::_PROCESSES]) for number in range(_PROCESSES)]
    plain = [
        [(p.key, p.value, p.timestamp, p.step) for p in points if p.key in part] for part in parts
    ]
    context = multiprocessing.get_context("spawn")  # a fork would share this one's connections
    with ProcessPoolExecutor(_PROCESSES, context) as pool:
        same = itertools.repeat(uri), itertools.repeat(mlflow_id)
        list(pool.map(_log_part, *same, plain))


def _log_part(uri: str, mlflow_id: str, plain: Sequence[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    from densevit.tracking.store import open_store

    client = open_store(uri)
    with _without_collection():
        for batch in _batches(plain):
            client.log_batch(mlflow_id, metrics=[Metric(*point) for point in batch])


def _batches(points: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(points), BATCH):
        yield points[start : start + BATCH]


@contextmanager
def _without_collection() -> Iterator[None]:
    """No search for cycles among what a batch makes by the thousand: a quarter of its time."""
    held = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if held:
            gc.enable()
