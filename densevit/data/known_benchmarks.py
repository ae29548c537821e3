"""Layouts of the known benchmarks: the names of their class folders and the classes they mean.

Imports no torch and reads only class lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from densevit.data import imagenet
from densevit.data.image_files import some


@dataclass(frozen=True)
class Layout:
    """The layout of a known benchmark: how its class `folders` are named, the `classes` they mean,
    the number of `images` published, an `example` of an image's path, and the download page."""

    folders: Literal["wnid", "number", "category", "corruption"]
    classes: Literal["imagenet", "imagenet_a", "imagenet_r", "categories"]
    images: int
    example: str
    source: str


_V2 = Layout(
    "number", "imagenet", 10_000, "0/0af3f1b55de791c4144e2fb6d7dfe96dfc22d3fc.jpeg",
    "https://huggingface.co/datasets/vaishaal/ImageNetV2",
)  # fmt: skip
LAYOUTS: dict[str, Layout] = {
    "imagenet": Layout(
        "wnid", "imagenet", 50_000, "n01440764/ILSVRC2012_val_00000293.JPEG",
        "https://image-net.org/challenges/LSVRC/2012/",
    ),
    "imagenet-a": Layout(
        "wnid", "imagenet_a", 7_500, "n01498041/0.000116_digital clock_0.865662.jpg",
        "https://github.com/hendrycks/natural-adv-examples",
    ),
    "imagenet-r": Layout(
        "wnid", "imagenet_r", 30_000, "n01443537/art_0.jpg",
        "https://github.com/hendrycks/imagenet-r",
    ),
    "imagenet-v2": _V2,
    "imagenet-v2-threshold": _V2,
    "imagenet-v2-top": _V2,
    "stylized-imagenet": Layout(
        "wnid", "imagenet", 50_000, "n01440764/ILSVRC2012_val_00000293.png",
        "https://github.com/rgeirhos/Stylized-ImageNet",
    ),
    "imagenet-sketch": Layout(
        "wnid", "imagenet", 50_889, "n01440764/sketch_0.JPEG",
        "https://github.com/HaohanWang/ImageNet-Sketch",
    ),
    "imagenet-c": Layout(
        "corruption", "imagenet", 4_750_000,
        "gaussian_noise/1/n01440764/ILSVRC2012_val_00000293.JPEG",
        "https://zenodo.org/records/2235448",
    ),
    "cue-conflict": Layout(
        "category", "categories", 1_280, "airplane/airplane1-bicycle2.png",
        "https://github.com/rgeirhos/texture-vs-shape",
    ),
}  # fmt: skip

# Benchmarks with archives to unpack.
PREPARED = (
    "imagenet", "imagenet-a", "imagenet-r", "imagenet-v2", "imagenet-v2-threshold",
    "imagenet-v2-top", "imagenet-sketch", "imagenet-c",
)  # fmt: skip


def expected_classes(layout: Layout) -> tuple[str, ...]:
    """Return the class names of a known benchmark, in label order."""
    return imagenet.CATEGORIES if layout.classes == "categories" else imagenet.wnids(layout.classes)


def misnamed(name: str, found: Sequence[str]) -> list[str]:
    """Describe wrong names of a benchmark's class folders and the right ones, in at most one line;
    nothing for a name that is not in `LAYOUTS`."""
    layout = LAYOUTS.get(name)
    if layout is None:
        return []
    classes = expected_classes(layout)
    digits = bool(found) and all(each.isascii() and each.isdigit() for each in found)
    expected = classes
    if layout.folders == "number" and not set(found) & set(classes):
        if digits and sorted(map(int, found)) == list(range(len(classes))):
            return []
        expected = tuple(str(number) for number in range(len(classes)))
    fault = difference(found, expected)
    if not fault:
        return []
    kind = {"number": "the numbers 0 to 999", "category": "the 16 categories"}.get(
        layout.folders, f"{len(expected)} WordNet ids"
    )
    if layout.folders != "number" and digits:
        fault += "; folder numbers do not identify classes: use the original folder names"
    how = f"from {layout.source}"
    if name in PREPARED:
        how += f", laid out by densevit data prepare {name} ARCHIVE --to DIR"
    return [
        f"its class folders must be {kind}, as in {layout.example} ({how}): "
        f"found {len(found)}; {fault}"
    ]


def difference(found: Sequence[str], expected: Sequence[str]) -> str:
    """Describe how two sets of class folder names differ; "" if they do not."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"lacks {some(missing)}"] if missing else []
    parts += [f"has {some(extra)} besides"] if extra else []
    return " and ".join(parts)
