"""Read the images of a run before it starts: all are intact, and none is in two sets.

Imports no torch, so that a sweep can check its data before a launch.
"""

from __future__ import annotations

from densevit.data.check_files import Reading
from densevit.data.check_folders import affordable_reading, unreadable
from densevit.data.datasets import Data
from densevit.data.image import Images
from densevit.data.shared_images import find_shared, refuse_shared, warn_of_shared
from densevit.utils.errors import UserError

# Of larger sets not every image is decoded. ImageNet's val has 6.7 GB: a minute of one processor.
MOST_BYTES = 8 << 30


def check_contents(data: Data) -> None:
    """Reject damaged images, and a val that shares images with train; warn of such benchmarks.

    Unchanged files are read once: the result is cached. Errors: `UserError` naming the set.
    """
    of_train = check_intact("train", data.train)
    for name, test_set in data.test_sets.items():
        of_test = check_intact(name, test_set.images)
        found = find_shared(data.train, test_set.images, of_train, of_test)
        refuse_shared(found, name) if name == "val" else warn_of_shared(found, name)


def check_apart(train: Images, val: Images, source: str) -> None:
    """Check two sets that something is fitted to and tested on; `source` begins the errors.

    Errors: as in `check_contents`.
    """
    of_train = check_intact(f"{source}: train", train)
    of_val = check_intact(f"{source}: val", val)
    refuse_shared(find_shared(train, val, of_train, of_val), f"{source}: val")


def check_intact(name: str, images: Images) -> Reading | None:
    """Return the reading of a set, None if it is too large or drawn.

    Errors: `UserError` for damaged images, naming the first one.
    """
    read = affordable_reading(images, MOST_BYTES)
    problems = unreadable(images, read)
    if problems:
        more = f" (and {len(problems) - 1} more: densevit data check)" if problems[1:] else ""
        raise UserError(f"{name}: {problems[0]}{more}")
    return read
