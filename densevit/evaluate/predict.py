"""Prediction of a network on a test set; `metrics.score` computes the metrics from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from densevit.data.crops import Transform
from densevit.data.image import chosen_labels
from densevit.data.loaders import let_go, plain_batches
from densevit.data.test_set import TestSet
from densevit.evaluate.highest import highest
from densevit.evaluate.predictions import (
    ClassPredictions,
    ImagePredictions,
    MultiLabelPredictions,
)
from densevit.utils.distributed import World, all_gather

MOST = 5  # predicted classes stored per image


@dataclass(frozen=True)
class PredictionRows:
    """One row per image, on the CPU: `indices` (n,) into the test set, and columns by name, as in
    `ClassPredictions` or `MultiLabelPredictions`."""

    indices: Tensor
    columns: dict[str, Tensor]

    def to_predictions(self, test_set: TestSet) -> ImagePredictions:
        """Return the predictions with the test set's names."""
        samples = [test_set.ids[i] for i in self.indices.tolist()]
        if "top" not in self.columns:
            labels, probabilities, losses = (
                self.columns[name].numpy() for name in ("labels", "probabilities", "losses")
            )
            return MultiLabelPredictions(
                test_set.name, tuple(test_set.classes), samples,
                labels.astype(np.uint8), probabilities, losses,
            )  # fmt: skip
        integers = {
            name: column.numpy().astype(np.int32)
            for name, column in self.columns.items()
            if not column.is_floating_point()
        }
        return ClassPredictions(
            benchmark=test_set.name,
            classes=tuple(test_set.classes),
            samples=samples,
            labels=integers["labels"],
            top=integers["top"],
            probabilities=self.columns["probabilities"].numpy(),
            losses=self.columns["losses"].numpy(),
            anywhere=integers.get("anywhere"),
            among={name: integers[f"among {name}"] for name in test_set.among},
            layout=test_set.layout,
        )

    @staticmethod
    def joined(parts: Sequence[PredictionRows]) -> PredictionRows:
        """Merge the predictions of several processes, in the order of the images."""
        indices = torch.cat([part.indices for part in parts])
        order = indices.argsort()
        columns = {
            name: torch.cat([part.columns[name] for part in parts])[order]
            for name in parts[0].columns
        }
        return PredictionRows(indices[order], columns)


def predict_together(
    model: nn.Module,
    test_set: TestSet,
    view: Transform,
    device: torch.device,
    world: World,
    *,
    batch_size: int,
    workers: int,
    boundary: Callable[[], None] = lambda: None,
    chosen: Sequence[int] | None = None,
) -> PredictionRows:
    """Predict all (or the chosen) images, split over the processes; each process returns all."""
    chosen = range(len(test_set)) if chosen is None else chosen
    batches = plain_batches(
        test_set, view, batch_size=batch_size, workers=workers, pin=device.type == "cuda",
        chosen=chosen[world.rank :: world.ranks],
    )  # fmt: skip
    rounds = -(-len(chosen) // (world.ranks * batch_size))
    own = predict(model, batches, test_set, device, boundary, rounds)
    return PredictionRows.joined(all_gather(own, world))


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: DataLoader[tuple[Tensor, Any, int]],
    test_set: TestSet,
    device: torch.device,
    boundary: Callable[[], None],
    rounds: int,
) -> PredictionRows:
    """Return predictions of a `DenseViT` or a timm classifier on batches of a test set.

    `boundary` is called before each of `rounds` batches, the number of the process with the most
    images: processes that synchronize there do so equally often.
    """
    was_training = model.training
    model.eval()
    classifier: Any = getattr(model, "backbone", model)
    outputs: int = classifier.num_classes
    to_columns = _ToColumns(test_set, outputs, device)
    # Empty columns, for a process without images.
    no_labels = torch.from_numpy(chosen_labels(test_set.labels, ())).to(device)
    parts = [to_columns(torch.empty(0, outputs, device=device), no_labels)]
    indices = [torch.empty(0, dtype=torch.int64)]
    remaining = iter(batches)
    try:
        for _ in range(rounds):
            boundary()
            batch = next(remaining, None)
            if batch is None:
                continue
            images, labels, of_batch = batch
            output = model(images.to(device, non_blocking=True))
            logits = getattr(output, "logits", output).float()  # (B, C)
            parts.append(to_columns(logits, labels.to(device, non_blocking=True)))
            indices.append(of_batch)
    finally:
        let_go(remaining)
        model.train(was_training)
    columns = {name: torch.cat([p[name] for p in parts]).cpu() for name in parts[0]}
    return PredictionRows(torch.cat(indices), columns)


def from_logits(test_set: TestSet, logits: Tensor, votes: Tensor | None = None) -> ImagePredictions:
    """Return predictions from logits (n, C), on the CPU, of all images of a test set.

    With `votes` (n, C), of images of one class each, the classes are ranked by these instead, and
    no class without a vote is predicted, not even if fewer than five have one.
    """
    columns = _ToColumns(test_set, logits.shape[1], logits.device)
    labels = torch.from_numpy(chosen_labels(test_set.labels, range(len(test_set))))
    found = columns(logits, labels)
    if votes is not None and labels.ndim == 1:
        found |= _top(votes, logits.softmax(dim=1))
        unvoted = votes.gather(1, found["top"]) == 0
        found["top"] = found["top"].masked_fill(unvoted, -1)
    return PredictionRows(torch.arange(len(test_set)), found).to_predictions(test_set)


class _ToColumns:
    """Compute the columns of `PredictionRows` from logits; the tables of a test set's classes are
    on the device."""

    def __init__(self, test_set: TestSet, outputs: int, device: torch.device) -> None:
        self.output_of: Tensor | None = None  # (G,) the output of a class
        self.members: list[Tensor] = []  # (m,) outputs of each class, where some have several
        self.class_of: Tensor | None = None  # (C,) the class of an output, -1: none
        groups = test_set.groups
        if groups is not None:
            class_of = torch.full((outputs,), -1)
            for number, group in enumerate(groups):
                class_of[list(group)] = number
            self.class_of = class_of.to(device)
            if all(len(group) == 1 for group in groups):
                self.output_of = torch.tensor([group[0] for group in groups], device=device)
            else:
                self.members = [torch.tensor(group, device=device) for group in groups]
        self.among = {}
        for name, classes in test_set.among.items():
            inside = torch.zeros(len(test_set.classes), dtype=torch.bool)
            inside[list(classes)] = True
            self.among[name] = torch.tensor(classes, device=device), inside.to(device)

    def __call__(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the prediction columns of logits (B, C) and labels (B,) or (B, C)."""
        if labels.ndim == 2:
            return _multilabel_columns(logits, labels)
        own = self._own(logits)  # (B, G)
        columns = {
            "labels": labels,
            **_top(own, own.softmax(dim=1)),
            "losses": F.cross_entropy(own, labels, reduction="none"),
        }
        if self.class_of is not None:
            columns["anywhere"] = self.class_of[logits.argmax(dim=1)]
        for name, (classes, inside) in self.among.items():
            predicted = classes[own[:, classes].argmax(dim=1)]
            columns[f"among {name}"] = torch.where(inside[labels], predicted, -1)
        return columns

    def _own(self, logits: Tensor) -> Tensor:
        """Return logits of the benchmark's classes; a group of outputs has its mean probability."""
        if self.output_of is not None:
            return logits[:, self.output_of]
        if self.members:
            # In logarithms: far from the most probable class the probabilities would all be 0.
            each = logits.log_softmax(dim=1)
            means = [each[:, m].logsumexp(dim=1) - math.log(len(m)) for m in self.members]
            return torch.stack(means, dim=1)
        return logits


def _top(scores: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """Return the classes with the highest scores (B, C), and their probabilities.

    Probabilities are no ranking: far ones round to 0. NaN comes last.
    """
    numbers = scores.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    order = highest(numbers, min(MOST, scores.shape[1]))[1]
    return {"top": order, "probabilities": probabilities.gather(1, order)}


def _multilabel_columns(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    return {"labels": labels, "probabilities": logits.sigmoid(), "losses": losses.sum(dim=1)}
