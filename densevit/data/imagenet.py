"""Class lists of ImageNet and its benchmarks, from timm and from published papers.

Imports neither torch nor timm: the lists are read from timm's installed files.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# The 16 categories of "ImageNet-trained CNNs are biased towards texture" and the indices of
# ImageNet's classes in each, from its authors' evaluation code (Geirhos et al., ICLR 2019 and
# NeurIPS 2021). An index counts the WordNet ids in sorted order.
_CATEGORIES: dict[str, str] = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898 899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385 386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}
CATEGORIES = tuple(_CATEGORIES)

# Top-1 error of AlexNet under each corruption, the mean of five severities, in percent. mCE divides
# by it (Hendrycks and Dietterich, ICLR 2019, table 1, with the digits of its authors' code).
ALEXNET_ERROR = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}
# Four further corruptions, published for validation; mCE excludes them.
CORRUPTIONS = (*ALEXNET_ERROR, "speckle_noise", "gaussian_blur", "spatter", "saturate")


@cache
def wnids(which: str = "imagenet") -> tuple[str, ...]:
    """Return WordNet ids in the order of a network's outputs: for `imagenet` the 1000 of ILSVRC
    2012, for `imagenet_a` and `imagenet_r` the 200 of that benchmark."""
    return tuple(_shipped(f"{which}_synsets.txt").read_text().split())


@cache
def reassessed() -> tuple[tuple[int, ...], ...]:
    """Return the reassessed labels of the 50,000 validation images, in order: none, one or several
    indices of `wnids()` ("Are we done with ImageNet?", Beyer et al. 2020)."""
    labels_of_all = json.loads(_shipped("imagenet_real_labels.json").read_text())
    return tuple(tuple(labels) for labels in labels_of_all)


@cache
def category_members() -> Mapping[str, tuple[str, ...]]:
    """Return the WordNet ids in each of the 16 cue-conflict categories."""
    names = wnids()

    def members(text: str) -> tuple[str, ...]:
        found: list[str] = []
        for part in text.split():
            first, _, last = part.partition("-")
            found += names[int(first) : int(last or first) + 1]
        return tuple(found)

    return {category: members(text) for category, text in _CATEGORIES.items()}


def texture(sample: str) -> str:
    """Return the texture category in the name of a cue-conflict image; "" if it has none."""
    found = _CONFLICT.fullmatch(sample.rpartition("/")[2])
    return found[1] if found else ""


_CONFLICT = re.compile(r"[a-z]+\d+-([a-z]+)\d+\.\w+")


def _shipped(name: str) -> Path:
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("timm", name="timm")
    return Path(spec.submodule_search_locations[0]) / "data" / "_info" / name
