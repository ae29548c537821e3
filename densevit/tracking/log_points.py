"""Send many points to one run of an MLflow store without leaving gaps in a metric."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from densevit.tracking.store_uri import is_server

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

BATCH = 1000  # points per call, MLflow's limit
_THREADS = 4


def log_points(client: MlflowClient, uri: str, mlflow_id: str, points: Sequence[Metric]) -> None:
    """Send points, those of each metric in order.

    A metric's last step in the store thus says how far it was sent, wherever this was interrupted.
    MLflow's own threads are not used: they keep no order and report no errors.
    """
    if is_server(uri) and len(points) > BATCH:
        # More connections than a server has workers: they are spread over these at random.
        parts = _parts(points, min(16, len(points) // BATCH))
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda part: _send(client, mlflow_id, part), parts))
    else:
        _send(client, mlflow_id, points)


def _send(client: MlflowClient, mlflow_id: str, points: Sequence[Metric]) -> None:
    for start in range(0, len(points), BATCH):
        client.log_batch(mlflow_id, metrics=points[start : start + BATCH], synchronous=True)


def _parts(points: Sequence[Metric], count: int) -> list[list[Metric]]:
    """Split points into at most `count` parts, each metric in one of them."""
    part_of: dict[str, int] = {}
    parts: list[list[Metric]] = [[] for _ in range(count)]
    for point in points:
        parts[part_of.setdefault(point.key, len(part_of) % count)].append(point)
    return [part for part in parts if part]
