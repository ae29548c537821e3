"""A test set: its images, its classes, and the groups that its metrics need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from densevit.data import imagenet
from densevit.data.image import Images, Labels, LazyImage

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TestSet:
    """Labeled images with the classes that a prediction is scored on.

    `labels` index `classes`, the benchmark's own. `groups` holds the network outputs of each class,
    or None if classes and outputs are the same. `among` holds, by name, subsets of the classes on
    which accuracy is also reported. `layout` is the name in `LAYOUTS`, or "".
    """

    name: str
    images: Images
    classes: tuple[str, ...]
    relabelled: Labels | None = None
    groups: Groups | None = None
    among: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layout: str = ""

    __test__ = False  # pytest collects classes by this name

    @property
    def labels(self) -> Labels:
        """Return `relabelled`, else the images' labels (which draws the built-in set)."""
        return self.images.labels if self.relabelled is None else self.relabelled

    @property
    def ids(self) -> Sequence[str]:
        return self.images.ids

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> LazyImage:
        return self.images.image(index)

    def fingerprint(self) -> dict[str, object]:
        return self.images.fingerprint()


def plain_set(name: str, images: Images) -> TestSet:
    """Return a test set whose classes are the network's outputs, in order: a run's own val.

    For ImageNet's 1000 classes, accuracy is also reported among the 200 of -A and of -R: the clean
    accuracy on the same classes.
    """
    among = {}
    if images.classes == imagenet.wnids():
        place = {wnid: index for index, wnid in enumerate(imagenet.wnids())}
        for benchmark, which in (("imagenet-a", "imagenet_a"), ("imagenet-r", "imagenet_r")):
            among[benchmark] = tuple(place[wnid] for wnid in imagenet.wnids(which))
    known = "imagenet" if among else ""
    return TestSet(name, images, tuple(images.classes), among=among, layout=known)
