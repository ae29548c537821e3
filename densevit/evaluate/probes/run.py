"""Run a probe of `config.probes.PROBES`: extract its features, and call its code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from densevit.config.probes import Probe, probes_by_name
from densevit.data.check_files import files_stamp
from densevit.data.crops import plain_view
from densevit.data.image import Images, chosen_labels
from densevit.data.test_set import TestSet
from densevit.evaluate.predict import from_logits
from densevit.evaluate.predictions import ImagePredictions, Predictions
from densevit.evaluate.probes.feature_store import Resources, features
from densevit.evaluate.probes.features import Which
from densevit.evaluate.probes.masks import MaskedImages
from densevit.utils.errors import UserError

# Squeeze the whole image to the square input, so that patches cover every part of its mask.
SQUEEZED = {"crop_pct": 1.0, "crop_mode": "squash"}


@dataclass
class ProbedNetwork:
    """A frozen network and the features extracted so far.

    model: returns `Tokens` of images of `image_size`, preprocessed as timm's data config in
        `preprocessing` says; `grid` is its rows and columns of patches, None if it has none.
    both: probes of the CLS token and of the mean patch follow; one pass extracts both.
    source, features_folder: identifies the network, and a folder that caches its features. Without
        a folder features are held in memory.
    """

    model: nn.Module
    image_size: int
    preprocessing: dict[str, Any]
    grid: tuple[int, int] | None
    resources: Resources
    both: bool = False
    source: str = ""
    features_folder: Path | None = None
    seed: int = 0
    extracted: dict[tuple[str, Which], Tensor] = field(default_factory=dict)


class FeatureSet(NamedTuple):
    """Images and their features on the CPU: (n, E), or (n, N, E) of all patches; float16."""

    images: Images
    features: Tensor

    @property
    def labels(self) -> Tensor:
        """Return the labels (n,), or (n, C) of images with several classes."""
        return torch.from_numpy(chosen_labels(self.images.labels, range(len(self.images))))


@dataclass(frozen=True)
class ProbeInput:
    """Input of a probe: features to fit it on and to test it on; the same in all processes.

    `images` of both are `MaskedImages` if the probe needs masks. `grid` is the rows and columns of
    patches, `image_size` the side of the network's input. `boundary` is to be called between steps,
    equally often in all processes: a run stops there.
    """

    name: str
    train: FeatureSet
    test: FeatureSet
    grid: tuple[int, int] | None
    image_size: int
    seed: int
    device: torch.device
    boundary: Callable[[], None]

    def class_predictions(self, logits: Tensor, votes: Tensor | None = None) -> ImagePredictions:
        """Return the predictions of logits (n, classes) of the test images.

        `votes` (n, classes) rank the classes instead, and predict none without a vote.
        """
        images = self.test.images
        test_set = TestSet(self.name, images, tuple(images.classes), images.labels)
        return from_logits(test_set, logits.float().cpu(), votes)


def run_probe(name: str, network: ProbedNetwork, splits: tuple[Images, Images]) -> Predictions:
    """Fit a probe, by its name in the field `probes`, on train and return its predictions on val.

    The processes extract the features together; each gets all of them and the same predictions.
    Errors: `UserError` for a probe of patches if the network has none.
    """
    probe = probes_by_name()[name]
    if network.grid is None and probe.tokens != "cls":
        raise UserError(f"{name}: the network has no patch tokens")
    train, test = (
        FeatureSet(images, _features(network, probe, split, images))
        for split, images in zip(("train", "val"), splits, strict=True)
    )
    predict: Callable[[ProbeInput], Predictions] = resolve_name(probe.predict)
    return predict(
        ProbeInput(
            name, train, test, network.grid, network.image_size, network.seed,
            network.resources.device, network.resources.boundary,
        )
    )  # fmt: skip


def reads_both_tokens(names: Iterable[str]) -> bool:
    """Return True if some probes of labeled images read the CLS token, others the mean patch."""
    probes = [probes_by_name()[name] for name in names]
    return {"cls", "patch"} <= {probe.tokens for probe in probes if not probe.masks}


def _features(network: ProbedNetwork, probe: Probe, split: str, images: Images) -> Tensor:
    if network.both and not probe.masks and probe.tokens != "patches":
        both = _extracted(network, split, images, "both", {})
        return both[:, ("cls", "patch").index(probe.tokens)]
    if probe.masks:
        return _extracted(network, f"masked-{split}", images, probe.tokens, SQUEEZED)
    return _extracted(network, split, images, probe.tokens, {})


def _extracted(
    network: ProbedNetwork, split: str, images: Images, tokens: Which, view: dict[str, Any]
) -> Tensor:
    key = (split, tokens)
    if key not in network.extracted:
        preprocessing = {**network.preprocessing, **view}
        file = None
        if network.features_folder is not None:
            # The digest covers the files: another folder may have the same file names.
            files = images.images if isinstance(images, MaskedImages | TestSet) else images
            of = [network.source, files_stamp(files), network.image_size, preprocessing]
            digest = blake2b(json.dumps(of).encode(), digest_size=8).hexdigest()
            file = network.features_folder / f"{split}-{tokens}-{digest}.npy"
        network.extracted[key] = features(
            network.model, images, plain_view(network.image_size, **preprocessing), tokens,
            network.resources, file,
        )  # fmt: skip
    return network.extracted[key]
