"""Write the built-in data set as folders of image files."""

from __future__ import annotations

import colorsys
import shutil
from pathlib import Path


def draw_folders(split: str, size: int, to: Path) -> Path:
    """Draw a split of `shapes` as `to/images/SPLIT/CLASS/N.png` with masks in `to/masks`.

    Masks are palette images: 0 is the background, label + 1 the object. Returns the image folder.
    An existing split stays. Errors: `ValueError` for a size that cannot be drawn, or if images of
    another size or other files exist there.
    """
    from PIL import Image

    from densevit.data.shapes import dataset

    done = to / "images" / split
    if _is_drawn(done, size):
        return done
    dataset.draw(split, 0, size)  # rejects a size before a folder is made
    hues = [
        colorsys.hsv_to_rgb(k / len(dataset.CLASSES), 1, 1) for k in range(len(dataset.CLASSES))
    ]
    palette = [0, 0, 0, *(round(255 * part) for hue in hues for part in hue)]
    parts = {kind: to / kind / f".{split}.part" for kind in ("masks", "images")}
    for folder in parts.values():
        shutil.rmtree(folder, ignore_errors=True)
        for name in dataset.CLASSES:
            (folder / name).mkdir(parents=True)
    for index in range(dataset.COUNTS[split]):
        drawn = dataset.draw(split, index, size)
        file = Path(dataset.CLASSES[int(drawn.label)]) / f"{index:05}.png"
        Image.fromarray(drawn.image).save(parts["images"] / file)
        mask = Image.fromarray(drawn.mask)
        mask.putpalette(palette)
        mask.save(parts["masks"] / file)
    for kind, folder in parts.items():  # images last: their folder marks the split as complete
        shutil.rmtree(to / kind / split, ignore_errors=True)
        folder.rename(to / kind / split)
    return done


def _is_drawn(folder: Path, size: int) -> bool:
    """Return True if the split is drawn; False for an empty folder. Errors: see `draw_folders`."""
    from PIL import Image, UnidentifiedImageError

    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    first = next(folder.rglob("*.png"), None)
    if first is None:
        raise ValueError(f"{folder}: holds other files than drawn images; give another folder")
    try:
        with Image.open(first, formats=["PNG"]) as there:
            width, height = there.size
    except UnidentifiedImageError:
        raise ValueError(f"{first}: is no PNG; give another folder") from None
    if (width, height) != (size, size):
        raise ValueError(f"{folder}: holds images of {width} pixels a side")
    return True
