"""Many points into one run of an MLflow store, so that a metric never has a hole in it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from densevit.tracking.store import is_server, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

BATCH = 1000  # points a call, MLflow's limit
MANY = 40_000  # from here on a second process is worth its start
_THREADS = 4
_T = TypeVar("_T")


def log_points(client: MlflowClient, uri: str, mlflow_id: str, points: Sequence[Metric]) -> None:
    """Send points, those of each metric in their order.

    A metric's last step in the store thus says how far it was sent, wherever this was interrupted.
    Hence nothing is left to MLflow's own threads either, which keep no order and tell no fault.
    """
    with _without_collection():
        if is_server(uri) and len(points) > BATCH:
            # More connections than a server has workers: which worker has one is left to chance.
            parts = _parts(points, min(16, len(points) // BATCH))
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda part: _send(client, mlflow_id, part), parts))
        elif len(points) < MANY:
            _send(client, mlflow_id, points)
        else:
            _send_by_two(client, uri, mlflow_id, _parts(points, len(points) // (4 * BATCH)))


def _send(client: MlflowClient, mlflow_id: str, points: Sequence[Metric]) -> None:
    for batch in _batches(points):
        client.log_batch(mlflow_id, metrics=batch, synchronous=True)


def _send_by_two(
    client: MlflowClient, uri: str, mlflow_id: str, parts: Sequence[Sequence[Metric]]
) -> None:
    """Send parts, another process from the first on, which takes its time to start, and this one
    from the last on: most of the time goes into Python and not into the database."""
    context = multiprocessing.get_context("spawn")  # a fork would share this one's connections
    pool = ProcessPoolExecutor(1, context, initializer=_follow_parent)
    try:
        plain = ([(p.key, p.value, p.timestamp, p.step) for p in part] for part in parts)
        sent = [pool.submit(_send_plain, uri, mlflow_id, part) for part in plain]
        for part, other in zip(reversed(parts), reversed(sent), strict=True):
            if other.cancel():
                _send(client, mlflow_id, part)
            else:
                other.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Let this process end when the one that started it is killed: it would wait for ever. And not
    before: some schedulers signal all processes of a job."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _send_plain(uri: str, mlflow_id: str, plain: Sequence[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    with _without_collection():
        _send(open_store(uri), mlflow_id, [Metric(*point) for point in plain])


def _parts(points: Sequence[Metric], count: int) -> list[list[Metric]]:
    """Points in so many parts or fewer, each metric in one of them."""
    place: dict[str, int] = {}
    parts: list[list[Metric]] = [[] for _ in range(count)]
    for point in points:
        parts[place.setdefault(point.key, len(place) % count)].append(point)
    return [part for part in parts if part]


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
