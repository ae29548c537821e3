"""Write folders of small images for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(root: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """Write class folders with the given numbers of images: one hue per class, plus noise."""
    rng = np.random.default_rng(seed)
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 80, (40, 40, 3))
            pixels[..., number % 3] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index}.png")
    return root
