"""A network on a set of pictures: predictions, and the numbers that follow from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from densevit.data.sources import Images
from densevit.model import DenseViT
from densevit.rundir import replacing


@dataclass(frozen=True)
class Predictions:
    """A row a picture, on the CPU: `indices` (n,) into the pictures, `labels` (n,), the `classes`
    with the highest `probabilities` (n, 5 or fewer), and the cross-entropy `losses` (n,)."""

    indices: Tensor
    labels: Tensor
    classes: Tensor
    probabilities: Tensor
    losses: Tensor

    def summary(self) -> dict[str, float | int]:
        """`top1` and `top5` in percent, the mean cross-entropy `loss` in nats, the count `n`."""
        hits = self.classes == self.labels[:, None]
        return {
            "top1": 100 * hits[:, 0].double().mean().item(),
            "top5": 100 * hits.any(dim=1).double().mean().item(),
            "loss": self.losses.double().mean().item(),
            "n": len(self.labels),
        }

    @staticmethod
    def joined(parts: list[Predictions]) -> Predictions:
        """Those of several processes, in the order of the pictures."""
        columns = [torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Predictions)]
        order = columns[0].argsort()
        return Predictions(*(column[order] for column in columns))


@torch.inference_mode()
def predict(
    model: DenseViT,
    batches: DataLoader,
    device: torch.device,
    boundary: Callable[[], None],
    rounds: int,
) -> Predictions:
    """The network's answers to the batches.

    `boundary` is called before each of `rounds` batches, the number that the process with the most
    pictures has: processes that wait for each other there do so equally often.
    """
    was_training = model.training
    model.eval()
    classes = model.backbone.num_classes
    parts = [_nothing(min(5, classes), device)]
    remaining = iter(batches)
    for _ in range(rounds):
        boundary()
        batch = next(remaining, None)
        if batch is None:
            continue
        images, labels, indices = batch
        logits = model(images.to(device, non_blocking=True)).logits.float()  # (B, C)
        labels = labels.to(device, non_blocking=True)
        best = logits.softmax(dim=1).topk(min(5, logits.shape[1]), dim=1)
        losses = F.cross_entropy(logits, labels, reduction="none")
        parts.append((indices, labels, best.indices, best.values, losses))
    model.train(was_training)
    return Predictions(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _nothing(best: int, device: torch.device) -> tuple[Tensor, ...]:
    """The columns of no picture: what a process has that got none."""
    whole = torch.empty(0, dtype=torch.int64)
    return (
        whole, whole.to(device), whole.view(0, 1).expand(0, best).to(device),
        torch.empty(0, best, device=device), torch.empty(0, device=device),
    )  # fmt: skip


def write_predictions(predictions: Predictions, images: Images, path: Path) -> None:
    """A Parquet file with a row a picture: sample, label, loss, top5 and their probabilities.

    `top5` are class indices, most probable first; the class names are in the file's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "sample": [images.ids[i] for i in predictions.indices.tolist()],
            "label": pa.array(predictions.labels.tolist(), pa.int32()),
            "loss": pa.array(predictions.losses.tolist(), pa.float32()),
            "top5": pa.array(predictions.classes.tolist(), pa.list_(pa.int32())),
            "probabilities": pa.array(predictions.probabilities.tolist(), pa.list_(pa.float32())),
        }
    ).replace_schema_metadata({"classes": json.dumps(images.classes)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
