"""What a run's frozen features are tried at: neighbours, a linear classifier, a dense one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from densevit.config import RunConfig
from densevit.data.benchmarks import resolved
from densevit.data.loading import plain_batches
from densevit.data.pictures import Images
from densevit.data.sources import Data, data_folder
from densevit.data.views import Transform, plain_view
from densevit.distributed import World, gathered
from densevit.errors import UserError
from densevit.evaluate import Predictions, asked_of
from densevit.frozen.features import Features, Which, extract
from densevit.frozen.knn import knn
from densevit.frozen.linear import linear_probe
from densevit.frozen.masks import MaskedImages, open_masks
from densevit.frozen.segmentation import Masked, dense_probe, square_view
from densevit.model import DenseViT
from densevit.predictions import Answers
from densevit.scores import Numbers, score


@dataclass
class Probing:
    """A network and the pictures of its run; features that two probes want are made once."""

    model: DenseViT
    config: RunConfig
    data: Data
    device: torch.device
    world: World
    batch_size: int
    boundary: Callable[[], None]
    held: dict[str, Features] = field(default_factory=dict)


def probe(name: str, probing: Probing) -> tuple[Numbers, Answers | None]:
    """The numbers of a probe, by its name in the field `probes`; and the answers, of pictures.

    All processes make the features together; each then has all of them, and the same numbers.
    """
    if name == "dense-probe":
        return _dense(probing), None
    train, val = (_features(probing, split, images) for split, images in _splits(probing))
    classes = len(probing.data.train.classes)
    values = (train.values, train.labels, val.values, classes)
    if name == "knn":
        votes = knn(*values, device=probing.device)
        # A class without a vote is not impossible, else its cross-entropy would be infinite.
        logits = (votes / votes.sum(dim=1, keepdim=True)).clamp_min(1e-6).log()
    else:
        logits = linear_probe(*values, device=probing.device)
    return _scored(name, probing, logits.float().cpu())


def masked_sets(config: RunConfig, size: int) -> tuple[MaskedImages, MaskedImages]:
    """The pictures with masks that the dense-probe learns from, and those that it is scored on.

    Errors: `UserError` if they are not found, or do not have the same classes.
    """
    spec, drawn = config.masks or config.dataset, None
    if spec == "shapes":
        own = config.dataset == "shapes"  # whose data_dir is that of other pictures else
        elsewhere = config.model_copy(update={"dataset": "shapes", "data_dir": None})
        drawn = data_folder(config if own else elsewhere)
    else:
        spec = str(resolved(spec, "masks"))
    train, test = (
        open_masks(spec, split, source="masks", size=size, drawn=drawn)
        for split in ("train", "val")
    )
    if train.classes != test.classes:
        raise UserError(f"masks: {spec}: train and val do not name the same classes")
    return train, test


def _splits(probing: Probing) -> list[tuple[str, Images]]:
    return [("train", probing.data.train), ("val", probing.data.val.images)]


def _features(probing: Probing, split: str, images: Images) -> Features:
    if split not in probing.held:
        model = probing.model
        view = plain_view(model.image_size, **model.pictures())
        tokens = probing.config.probe_tokens
        probing.held[split] = _extracted(probing, images, view, tokens)
    return probing.held[split]


def _extracted(probing: Probing, images: Images, view: Transform, tokens: Which) -> Features:
    """The features of all pictures; each process makes those of its share."""
    rank, ranks = probing.world.rank, probing.world.ranks
    rounds = math.ceil(len(images) / (ranks * probing.batch_size))
    called = 0

    def boundary() -> None:
        nonlocal called
        if called < rounds:
            probing.boundary()
        called += 1

    batches = plain_batches(
        images, view, batch_size=probing.batch_size, workers=probing.config.workers,
        pin=probing.device.type == "cuda", chosen=range(len(images))[rank::ranks],
    )  # fmt: skip
    own = None  # of a process for which there is no picture
    if rank < len(images):
        own = extract(probing.model, batches, probing.device, tokens=tokens, boundary=boundary)
    while called < rounds:  # as often as the process with the most pictures
        boundary()
    parts = gathered(own, probing.world)
    if own is not None and ranks == 1:
        return own
    first = parts[0]
    values = first.values.new_empty(len(images), *first.values.shape[1:])
    labels = first.labels.new_empty(len(images))
    for number, part in enumerate(parts[: len(images)]):
        values[number::ranks], labels[number::ranks] = part
    return Features(values, labels)


def _scored(name: str, probing: Probing, logits: Tensor) -> tuple[Numbers, Answers]:
    val = probing.data.val
    asked = type(val)(name, val.images, val.classes)
    columns = asked_of(asked, logits, torch.tensor(list(val.labels)))
    answers = Predictions(torch.arange(len(val)), columns).answers(asked)
    return score(answers), answers


def _dense(probing: Probing) -> Numbers:
    model, config = probing.model, probing.config
    train, test = masked_sets(config, model.image_size)
    view = square_view(model)
    tokens = [_extracted(probing, images, view, "patches").values for images in (train, test)]
    found = dense_probe(
        Masked(tokens[0], train.mask), Masked(tokens[1], test.mask), train.classes, model.grid,
        size=model.image_size, seed=config.seed, device=probing.device,
    )  # fmt: skip
    return {
        "miou": found.miou,
        "pixel_accuracy": found.pixel_accuracy,
        **{f"iou_{name}": value for name, value in found.per_class.items()},
        "n": found.n,
    }
