"""The queue of past keys that serve as negatives."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


class FeatureQueue(nn.Module):
    """First-in-first-out store of features and of the images they come from.

    He et al., "Momentum Contrast", section 3.2 ("dictionary as a queue"). Slots not yet filled hold
    random unit vectors with image id -1, so that the loss has all its negatives from the start.

    With torch.distributed initialised, every rank's keys enter the queue of every rank, in the
    order of the ranks, so that all queues stay equal if they began so (the same random state on
    every rank when they are made).

    Buffers, all of them in the state dict:
        features: (size, dim) float32. In-place: clone it where an older content is still needed.
        image_ids: (size,) int64, -1 for a slot not yet filled.
        position: () int64, the slot that the next key takes; the oldest feature lies there.
        written: (size,) int64, which call of `enqueue`, counted from 1, filled the slot.
        calls: () int64, how many calls of `enqueue` there were.

    Args:
        size: number of slots, >= 1.
        dim: length of a feature, >= 1.
        generator: CPU generator of the first random vectors; torch's default one if None.

    Raises:
        ValueError: size or dim is below 1.
    """

    features: Tensor
    image_ids: Tensor
    position: Tensor
    written: Tensor
    calls: Tensor

    def __init__(self, size: int, dim: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        noise = torch.randn(size, dim, generator=generator, dtype=torch.float32)
        self.register_buffer("features", F.normalize(noise, dim=1))
        self.register_buffer("image_ids", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("written", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        # The same number as `position`: reading the buffer would wait for the device.
        self._position = 0
        self.register_load_state_dict_post_hook(_read_position)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, image_ids: Tensor) -> None:
        """Replace the M oldest features; of more keys than slots, the last ones stay.

        A key that is not finite, from a step that went wrong, leaves its slot as it is.

        Args:
            keys: (M, dim), any M, but the same on every rank; stored without gradient.
            image_ids: (M,) integers >= 0, the image of each key.

        Raises:
            ValueError: a shape does not fit.
        """
        size, dim = self.features.shape
        if keys.ndim != 2 or keys.shape[1] != dim:
            raise ValueError(f"keys must be (M, {dim}), got {tuple(keys.shape)}")
        if image_ids.shape != keys.shape[:1]:
            raise ValueError(f"image_ids must be ({len(keys)},), got {tuple(image_ids.shape)}")
        keys, image_ids = _of_all_ranks(keys), _of_all_ranks(image_ids)
        self.calls += 1
        dropped = max(len(keys) - size, 0)
        keys, image_ids = keys[dropped:], image_ids[dropped:]
        start = (self._position + dropped) % size
        until_end = min(len(keys), size - start)
        wrapped = len(keys) - until_end
        whole = keys.isfinite().all(dim=1)
        written = self.calls.expand(len(keys))
        stores = (self.features, keys), (self.image_ids, image_ids), (self.written, written)
        for store, new in stores:
            for slots, part in (
                (slice(start, start + until_end), slice(None, until_end)),
                (slice(0, wrapped), slice(until_end, None)),
            ):
                taken = whole[part].view(-1, *[1] * (store.ndim - 1))
                store[slots] = torch.where(taken, new[part].to(store.dtype), store[slots])
        self._position = (start + len(keys)) % size
        self.position.fill_(self._position)

    def diversity(self) -> float:
        """Number of different images among the filled slots, over the number of all slots.

        In [0, 1]; 1 when every slot holds another image. Waits for the device.
        """
        filled = self.image_ids[self.image_ids >= 0]
        return len(filled.unique()) / len(self.image_ids)

    def age(self) -> float:
        """Mean age of the filled slots in calls of `enqueue`; 1 is what the last call brought.

        This is how many steps the encoder has moved on since the negatives of the next step were
        encoded. 0 while no slot is filled. Waits for the device.
        """
        ages = (self.calls + 1 - self.written)[self.image_ids >= 0]
        return ages.double().mean().item() if len(ages) else 0.0


def _of_all_ranks(rows: Tensor) -> Tensor:
    """Rows (M, ...) of every rank, (world·M, ...) in the order of the ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _read_position(queue: nn.Module, _incompatible_keys: Any) -> None:
    queue._position = int(queue.position)
