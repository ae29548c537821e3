"""What frozen features are tried at: neighbours, a linear classifier, a dense one."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densevit.config import RunConfig
from densevit.data.benchmarks import TestSet, resolved
from densevit.data.pictures import Images
from densevit.data.reading import files_stamp
from densevit.data.sources import data_folder
from densevit.data.views import plain_view
from densevit.errors import UserError
from densevit.evaluate import Predictions, asked_of
from densevit.frozen.features import Which
from densevit.frozen.knn import knn
from densevit.frozen.linear import linear_probe
from densevit.frozen.masks import MaskedImages, open_masks
from densevit.frozen.segmentation import Masked, dense_probe
from densevit.frozen.store import Means, features
from densevit.predictions import Answers, Areas

# The whole picture, squeezed to the square input: each part of a mask then lies under some patch.
SQUEEZED = {"crop_pct": 1.0, "crop_mode": "squash"}


@dataclass
class Probing:
    """A network, and the pictures that its features are tried on.

    model: gives `Tokens` of pictures of `image_size`, seen as timm's words in `pictures` say;
        `grid` are its rows and columns of patches, None where it has none.
    train, val: for knn and linear-probe; masked: train and val for the dense-probe.
    both: probes of the CLS token and of the mean patch follow, for which one pass will do.
    source, kept: tells the network from any other, and a folder for its features: what is made once
        is found there again. Without a folder features are held in memory.
    """

    model: nn.Module
    image_size: int
    pictures: dict[str, Any]
    grid: tuple[int, int] | None
    means: Means
    splits: Callable[[], tuple[Images, TestSet]]
    masked: Callable[[], tuple[MaskedImages, MaskedImages]]
    both: bool = False
    source: str = ""
    kept: Path | None = None
    seed: int = 0
    held: dict[tuple[str, Which], Tensor] = field(default_factory=dict)


def probe(name: str, probing: Probing) -> Answers | Areas:
    """The answers of a probe, by its name in the field `probes`.

    All processes make the features together; each then has all of them, and the same answers.
    Errors: `UserError` for a probe of patches where the network has none.
    """
    kind = name.removesuffix("-patch")
    if probing.grid is None and (kind == "dense-probe" or name != kind):
        raise UserError(f"{name}: the network has no patch tokens")
    if kind == "dense-probe":
        return _dense(probing)
    train, val = probing.splits()
    tokens: Which = "cls" if name == kind else "patch"
    rows = [
        _of_picture(probing, split, images, tokens)
        for split, images in (("train", train), ("val", val.images))
    ]
    values = (rows[0], torch.tensor(list(train.labels)), rows[1], len(train.classes))
    means = probing.means
    if kind == "knn":
        votes = knn(*values, device=means.device, boundary=means.boundary)
        # A class without a vote is not impossible, else its cross-entropy would be infinite.
        logits = (votes / votes.sum(dim=1, keepdim=True)).clamp_min(1e-6).log()
    else:
        logits = linear_probe(*values, device=means.device, boundary=means.boundary)
    return _answers(name, val, logits.float().cpu())


def both_wanted(names: Collection[str]) -> bool:
    """Whether probes of the CLS token and of the mean patch are among them."""
    of_pictures = [name for name in names if name != "dense-probe"]
    return len({name.endswith("-patch") for name in of_pictures}) > 1


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


def _of_picture(probing: Probing, split: str, images: Images, tokens: Which) -> Tensor:
    """(n, E)"""
    if not probing.both:
        return _features(probing, split, images, tokens)
    return _features(probing, split, images, "both")[:, ("cls", "patch").index(tokens)]


def _features(probing: Probing, split: str, images: Images, tokens: Which) -> Tensor:
    key = (split, tokens)
    if key not in probing.held:
        look = {**probing.pictures, **(SQUEEZED if tokens == "patches" else {})}
        file = None
        if probing.kept is not None:
            # By its files and not by its names alone: another folder may have the same names.
            seen = files_stamp(images.pictures if isinstance(images, MaskedImages) else images)
            of = [probing.source, seen, probing.image_size, look]
            digest = blake2b(json.dumps(of).encode(), digest_size=8).hexdigest()
            file = probing.kept / f"{split}-{tokens}-{digest}.npy"
        view = plain_view(probing.image_size, **look)
        probing.held[key] = features(probing.model, images, view, tokens, probing.means, file)
    return probing.held[key]


def _answers(name: str, val: TestSet, logits: Tensor) -> Answers:
    asked = TestSet(name, val.images, val.classes)
    columns = asked_of(asked, logits, torch.tensor(list(val.labels)))
    return Predictions(torch.arange(len(val)), columns).answers(asked)


def _dense(probing: Probing) -> Areas:
    train, test = probing.masked()
    tokens = [
        _features(probing, split, images, "patches")
        for split, images in (("masked-train", train), ("masked-val", test))
    ]
    return dense_probe(
        Masked(tokens[0], train.mask), Masked(tokens[1], test.mask), train.classes, probing.grid,
        samples=test.ids, size=probing.image_size, seed=probing.seed,
        device=probing.means.device, boundary=probing.means.boundary,
    )  # fmt: skip
