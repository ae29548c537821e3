"""A network on a test set: its answers, from which `scores` makes numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from densevit.data.benchmarks import TestSet
from densevit.data.loading import let_go, plain_batches
from densevit.data.views import Transform
from densevit.distributed import World, gathered
from densevit.predictions import Answers

MOST = 5  # answers kept of a picture


@dataclass(frozen=True)
class Predictions:
    """A row a picture, on the CPU: `indices` (n,) into the test set, and the columns of
    `predictions.Answers`."""

    indices: Tensor
    columns: dict[str, Tensor]

    def answers(self, asked: TestSet) -> Answers:
        """The same with the names of what was asked."""
        held = {name: column.numpy() for name, column in self.columns.items()}
        whole = {n: c.astype(np.int32) for n, c in held.items() if c.dtype.kind == "i"}
        return Answers(
            benchmark=asked.name,
            classes=tuple(asked.classes),
            samples=[asked.ids[i] for i in self.indices.tolist()],
            labels=whole["labels"],
            top=whole["top"],
            probabilities=held["probabilities"],
            losses=held["losses"],
            anywhere=whole.get("anywhere"),
            among={name: whole[f"among {name}"] for name in asked.among},
            layout=asked.layout,
        )

    @staticmethod
    def joined(parts: list[Predictions]) -> Predictions:
        """Those of several processes, in the order of the pictures."""
        indices = torch.cat([part.indices for part in parts])
        order = indices.argsort()
        columns = {
            name: torch.cat([part.columns[name] for part in parts])[order]
            for name in parts[0].columns
        }
        return Predictions(indices[order], columns)


def predict_together(
    model: nn.Module,
    asked: TestSet,
    view: Transform,
    device: torch.device,
    world: World,
    *,
    batch_size: int,
    workers: int,
    boundary: Callable[[], None] = lambda: None,
    chosen: Sequence[int] | None = None,
) -> Predictions:
    """The predictions for all (or the chosen) pictures, each by one of the processes, all of which
    have all of them at the end. `boundary`: see `predict`."""
    chosen = range(len(asked)) if chosen is None else chosen
    batches = plain_batches(
        asked, view, batch_size=batch_size, workers=workers, pin=device.type == "cuda",
        chosen=chosen[world.rank :: world.ranks],
    )  # fmt: skip
    rounds = -(-len(chosen) // (world.ranks * batch_size))
    own = predict(model, batches, asked, device, boundary, rounds)
    return Predictions.joined(gathered(own, world))


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: DataLoader,
    asked: TestSet,
    device: torch.device,
    boundary: Callable[[], None],
    rounds: int,
) -> Predictions:
    """The answers to batches of a test set, of a `DenseViT` or a classifier of timm's.

    `boundary` is called before each of `rounds` batches, the number that the process with the most
    pictures has: processes that wait for each other there do so equally often.
    """
    was_training = model.training
    model.eval()
    outputs = getattr(model, "backbone", model).num_classes
    question = _Question(asked, outputs, device)
    nothing = torch.empty(0, dtype=torch.int64)
    # What a process has that got no picture.
    parts = [question.columns(torch.empty(0, outputs, device=device), nothing.to(device))]
    places = [nothing]
    remaining = iter(batches)
    try:
        for _ in range(rounds):
            boundary()
            batch = next(remaining, None)
            if batch is None:
                continue
            images, labels, indices = batch
            told = model(images.to(device, non_blocking=True))
            logits = getattr(told, "logits", told).float()  # (B, C)
            parts.append(question.columns(logits, labels.to(device, non_blocking=True)))
            places.append(indices)
    finally:
        let_go(remaining)
        model.train(was_training)
    columns = {name: torch.cat([p[name] for p in parts]).cpu() for name in parts[0]}
    return Predictions(torch.cat(places), columns)


def asked_of(asked: TestSet, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The columns of `Predictions` from logits (n, C) of whole pictures and labels (n,)."""
    return _Question(asked, logits.shape[1], logits.device).columns(logits, labels)


class _Question:
    """What a test set asks of logits; its tables lie on the device."""

    def __init__(self, asked: TestSet, outputs: int, device: torch.device) -> None:
        self.chosen: Tensor | None = None  # (G,) outputs, one for each class
        self.share: Tensor | None = None  # (C, G), where a class is the mean of several outputs
        self.meaning: Tensor | None = None  # (C,) the class of an output, -1: none
        groups = asked.groups
        if groups is not None:
            meaning = torch.full((outputs,), -1)
            for number, group in enumerate(groups):
                meaning[list(group)] = number
            self.meaning = meaning.to(device)
            if all(len(group) == 1 for group in groups):
                self.chosen = torch.tensor([group[0] for group in groups], device=device)
            else:
                share = torch.zeros(outputs, len(groups))
                for number, group in enumerate(groups):
                    share[list(group), number] = 1 / len(group)
                self.share = share.to(device)
        self.among = {}
        for name, classes in asked.among.items():
            inside = torch.zeros(len(asked.classes), dtype=torch.bool)
            inside[list(classes)] = True
            self.among[name] = torch.tensor(classes, device=device), inside.to(device)

    def columns(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """From logits (B, C) and labels (B,)."""
        own = self._own(logits)  # (B, G)
        best = own.softmax(dim=1).topk(min(MOST, own.shape[1]), dim=1)
        columns = {
            "labels": labels,
            "top": best.indices,
            "probabilities": best.values,
            "losses": F.cross_entropy(own, labels, reduction="none"),
        }
        if self.meaning is not None:
            columns["anywhere"] = self.meaning[logits.argmax(dim=1)]
        for name, (classes, inside) in self.among.items():
            answer = classes[own[:, classes].argmax(dim=1)]
            columns[f"among {name}"] = torch.where(inside[labels], answer, -1)
        return columns

    def _own(self, logits: Tensor) -> Tensor:
        """Logits of the benchmark's classes; of a group of outputs the mean probability counts."""
        if self.chosen is not None:
            return logits[:, self.chosen]
        if self.share is not None:
            shares = logits.softmax(dim=1) @ self.share
            return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
        return logits
