"""Images that have labels only, for tests of metrics."""

from collections.abc import Sequence


class Labeled:
    """Images of `classes` classes; nothing can be read."""

    def __init__(self, classes: int, labels: Sequence[int]) -> None:
        self.classes, self.labels = tuple(f"c{n}" for n in range(classes)), labels
        self.ids = [f"{n}" for n in range(len(labels))]

    def __len__(self) -> int:
        return len(self.labels)
