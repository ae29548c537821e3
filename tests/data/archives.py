"""Small folders with the layout of the real archives; the color of an image encodes its class."""

import io
from functools import cache

from PIL import Image

from densevit.data.imagenet import wnids

PLACE = {wnid: index for index, wnid in enumerate(wnids())}


@cache
def colored(index):
    """Return the bytes of a small image that encodes a number below 1,024."""
    file = io.BytesIO()
    color = (index // 32 * 8 + 4, index % 32 * 8 + 4, 128)
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


def lay(root, folders, name="picture.png"):
    """Write one class folder per entry of `folders`, with one image that encodes its number."""
    for folder, index in folders.items():
        (root / folder).mkdir(parents=True)
        (root / folder / name).write_bytes(colored(index))
    return root


def by_wnid(root, which="imagenet", name="picture.png"):
    return lay(root, {wnid: PLACE[wnid] for wnid in wnids(which)}, name)


def by_number(root):
    return lay(root, {str(index): index for index in range(1000)})
