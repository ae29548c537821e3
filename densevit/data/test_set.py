"""A test set: its images, its classes, and the groups that its metrics need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from densevit.data import imagenet
from densevit.data.image import Images, Labels, LazyImage, root_of
from densevit.data.image_files import some

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TestSet:
    """Labeled images with the classes that a prediction is scored on.

    `labels` index `classes`, the benchmark's own. `groups` holds the network outputs of each class,
    or None if classes and outputs are the same. `among` holds, by name, subsets of the classes on
    which accuracy is also reported. `layout` is the name in `LAYOUTS`, or "". `shared_of` is the
    number of classes of a known benchmark of which the network has only these; else 0.
    """

    name: str
    images: Images
    classes: tuple[str, ...]
    relabelled: Labels | None = None
    groups: Groups | None = None
    among: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layout: str = ""
    shared_of: int = 0

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

    def notes(self) -> list[str]:
        """Return lines about classes without images, and classes that the network does not have."""
        if root_of(self.images) is None:  # drawn: complete, and its labels would draw it
            return []
        lines, shown = [], set(self.labels)
        absent = [name for label, name in enumerate(self.classes) if label not in shown]
        if absent:
            lines.append(
                f"has no images of {len(absent)} of its {len(self.classes)} classes "
                f"({some(absent)}): its scores are those of the others"
            )
        if self.shared_of:
            lines.append(
                f"is scored on the {len(self.classes)} of its {self.shared_of} classes that the "
                f"network has, and among these: compare only with scores on the same classes"
            )
        return lines


def plain_set(name: str, images: Images) -> TestSet:
    """Return a test set whose classes are the network's outputs, in order: a run's own val.

    For ImageNet's classes, or some of them, accuracy is also reported among those of -A and of -R:
    the clean accuracy on the same classes.
    """
    among = {}
    if set(images.classes) <= set(imagenet.wnids()):
        place = {wnid: index for index, wnid in enumerate(images.classes)}
        for benchmark, which in (("imagenet-a", "imagenet_a"), ("imagenet-r", "imagenet_r")):
            shared = tuple(place[wnid] for wnid in imagenet.wnids(which) if wnid in place)
            if len(shared) > 1:
                among[benchmark] = shared
    known = "imagenet" if images.classes == imagenet.wnids() else ""
    return TestSet(name, images, tuple(images.classes), among=among, layout=known)
