"""Small folders laid out as the real archives are; a picture's colour says its class."""

import io
from functools import cache

from PIL import Image

from densevit.data.imagenet import wnids

PLACE = {wnid: index for index, wnid in enumerate(wnids())}


@cache
def coloured(index):
    """The bytes of a small picture that shows a number below 1,024."""
    file = io.BytesIO()
    colour = (index // 32 * 8 + 4, index % 32 * 8 + 4, 128)
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def lay(root, folders, name="picture.png"):
    """A folder a class with one picture in it; `folders` maps its name to the number it shows."""
    for folder, index in folders.items():
        (root / folder).mkdir(parents=True)
        (root / folder / name).write_bytes(coloured(index))
    return root


def by_wnid(root, which="imagenet", name="picture.png"):
    return lay(root, {wnid: PLACE[wnid] for wnid in wnids(which)}, name)


def by_number(root):
    return lay(root, {str(index): index for index in range(1000)})
