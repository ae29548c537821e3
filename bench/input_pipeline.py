"""Measure how many images per second one core turns into two augmented views.

    python bench/input_pipeline.py [--pictures FOLDER] [--count N] [--size WxH] [--json FILE]

JPEG files of one size in a temporary folder, read by one process on one thread:

    decode            the file's pixels, nothing else
    decode and crops  ... and two random crops, resized (what no pipeline can save)
    ours, worker      the part of a loading process: read, decode, two crops, draw their colors
    ours, all         ... and the device's part (colors, blur, normalization) on the same core
    torchvision       both views by torchvision's transforms, image by image

The five take turns, round after round, so that a slow moment of the machine affects all alike.
Prints a Markdown table of medians; ratios are to `torchvision` and to `decode and crops` of the
same round. `--json` writes all of it. Without --pictures the files hold noise with the spectrum of
photographs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from harness import markdown, seconds_of, write_record
from PIL import Image

from densevit.data.crops import RECIPES
from densevit.data.image import open_header
from densevit.data.image_files import has_image_suffix
from densevit.data.image_folder import FolderImages
from densevit.data.loaders import TwoViews
from densevit.utils.errors import EXIT_MISTAKE
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from torchvision.transforms import v2  # noqa: E402

SIDE = 224
BATCH = 16
NORMALIZATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("input_pipeline.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=Path, help="folder of images to use, resized")
    parser.add_argument("--count", type=int, default=64, help="files (%(default)s)")
    parser.add_argument("--size", default="500x375", help="of the files (%(default)s)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    try:
        width, height = (int(side) for side in options.size.split("x"))
    except ValueError:
        print(f"input_pipeline.py: --size: {options.size!r} must be like 500x375", file=sys.stderr)
        return EXIT_MISTAKE
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = write_files(Path(folder), options, (width, height))
        rates = measure(images, options.rounds)
    print(table(rates))
    if options.json:
        write_record(options.json, "input_pipeline.py", given, images_per_second=rates)
    return 0


def write_files(folder: Path, options: argparse.Namespace, size: tuple[int, int]) -> FolderImages:
    """Write JPEG files of one size; return them as a data set."""
    (folder / "x").mkdir()
    found = []
    if options.pictures:
        found = sorted(p for p in options.pictures.rglob("*") if has_image_suffix(p.name))
        found = found[:: max(1, len(found) // options.count)]
    ids = [f"x/{number}.jpg" for number in range(options.count)]
    for number, name in enumerate(ids):
        if found:
            with found[number % len(found)].open("rb") as file:
                image = open_header(file).convert("RGB")
            image = image.resize(size, Image.Resampling.BICUBIC)
        else:
            image = noise(size, number)
        image.save(folder / name, quality=options.quality)
    return FolderImages(folder, ("x",), tuple(ids), (0,) * len(ids))


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    """Return noise whose amplitude falls with the frequency, as that of photographs does."""
    width, height = size
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    planes = []
    for _ in range(3):
        phase = generator.standard_normal(frequency.shape) + 1j * generator.standard_normal(
            frequency.shape
        )
        plane = np.fft.irfft2(phase / frequency, s=(height, width))
        planes.append(plane / plane.std())
    mixed = 0.8 * planes[0][..., None] + 0.3 * np.stack(planes, axis=2)  # channels are alike
    return Image.fromarray((128 + 50 * mixed).clip(0, 255).astype(np.uint8))


def measure(images: FolderImages, rounds: int) -> dict[str, list[float]]:
    """Return the images per second of each pipeline, one number per round."""
    ours = TwoViews(images, SIDE, seed=0)
    transforms = [torchvisions(*recipe) for recipe in RECIPES]

    def decode(index: int) -> Image.Image:
        image = Image.open(images.root / images.ids[index], formats=["JPEG"])
        image.load()
        return image

    boxes: list[list[tuple[float, float, float, float]]] = []  # of the current round

    def crops(index: int) -> list[Image.Image]:
        image = decode(index)
        size = (SIDE, SIDE)
        return [image.resize(size, Image.Resampling.BICUBIC, box=b) for b in boxes[index]]

    def torchvision(index: int) -> list[torch.Tensor]:
        image = decode(index)
        return [transform(image) for transform in transforms]

    def in_batches(epoch: int, *, developed: bool) -> None:
        for start in range(0, len(images), BATCH):
            keys = range(start, min(start + BATCH, len(images)))
            batch = ours.__getitems__([(epoch, index) for index in keys])
            if developed:
                batch.developed(*NORMALIZATION)

    def each(function: Callable[[int], object]) -> Callable[[int], None]:
        return lambda _epoch: [function(index) for index in range(len(images))] and None

    ways: dict[str, Callable[[int], None]] = {
        "decode": each(decode),
        "decode and crops": each(crops),
        "ours, worker": lambda epoch: in_batches(epoch, developed=False),
        "ours, all": lambda epoch: in_batches(epoch, developed=True),
        "torchvision": each(torchvision),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        boxes[:] = [places(images, number, index) for index in range(len(images))]
        for name, way in ways.items():
            seconds = seconds_of(lambda way=way, number=number: way(number))
            if number:  # the first round is the warm-up
                rates[name].append(len(images) / seconds)
    return rates


def places(images: FolderImages, epoch: int, index: int) -> list[tuple[float, float, float, float]]:
    """Return the boxes that our pipeline cuts from an image, drawn beforehand."""
    crops = TwoViews(images, SIDE, seed=0).__getitems__([(epoch, index)])
    found = []
    for crop in (crops.first, crops.second):
        left, top, right, bottom = crop.place[0].tolist()
        found.append((min(left, right), top, max(left, right), bottom))
    return found


def torchvisions(scale: tuple[float, float], blur: float) -> v2.Compose:
    """Return the transforms of a view as they are usually written."""
    steps = [
        v2.RandomResizedCrop(SIDE, scale, interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(SIDE // 10 | 1, (0.1, 2.0))], p=blur))
    return v2.Compose([*steps, v2.Normalize(*NORMALIZATION)])


def table(rates: dict[str, list[float]]) -> str:
    """Return a Markdown table with one row per pipeline."""
    rows = []
    for name, own in rates.items():
        ratios = [
            statistics.median(a / b for a, b in zip(own, rates[other], strict=True))
            for other in ("torchvision", "decode and crops")
        ]
        rows.append([name, f"{statistics.median(own):.0f}", *(f"{ratio:.2f}" for ratio in ratios)])
    head = ["pipeline", "images/s", "ratio to torchvision", "ratio to decode and crops"]
    return markdown(head, rows)


if __name__ == "__main__":
    raise SystemExit(main())
