"""The queue of past keys that serve as negatives."""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


class FeatureQueue(nn.Module):
    """First-in-first-out queue of features and of the images they come from.

    He et al., "Momentum Contrast", section 3.2 ("dictionary as a queue"). Empty slots hold random
    unit vectors with image id -1, so that the loss has all its negatives from the start.

    With torch.distributed initialized, the keys of every rank enter the queue of every rank, in
    rank order. All queues thus stay equal if every rank creates them with the same random state.

    Buffers, all of them in the state dict:
        features: (size, dim) float32. Updated in place: clone it to keep older content.
        image_ids: (size,) int64, -1 for an empty slot.
        position: () int64, the slot that the next key takes; it holds the oldest feature.
        written: (size,) int64, the call of `enqueue`, counted from 1, that filled the slot.
        calls: () int64, number of calls of `enqueue`.

    Args:
        size: number of slots, >= 1.
        dim: length of a feature, >= 1.
        generator: CPU generator of the initial random vectors; None is torch's default generator.

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
        # A copy of `position`: reading the buffer would wait for the device.
        self._position = 0
        self.register_load_state_dict_post_hook(_read_position)  # type: ignore[no-untyped-call]  # torch: no hints

    @torch.no_grad()
    def enqueue(self, keys: Tensor, image_ids: Tensor) -> None:
        """Replace the M oldest features; of more keys than slots, the last ones are kept.

        A key that is not finite (from a failed step) leaves its slot unchanged.

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
        """Return the number of different images in the queue over the number of slots.

        In [0, 1]; 1 if every slot holds a different image. Waits for the device.
        """
        filled = torch.unique(self.image_ids[self.image_ids >= 0])
        return len(filled) / len(self.image_ids)

    def age(self) -> float:
        """Return the mean age of the filled slots in calls of `enqueue`; the last call has age 1.

        This is the number of steps since the next step's negatives were encoded. 0 while no slot
        is filled. Waits for the device.
        """
        ages = (self.calls + 1 - self.written)[self.image_ids >= 0]
        return ages.double().mean().item() if len(ages) else 0.0


def _of_all_ranks(rows: Tensor) -> Tensor:
    """Gather the rows (M, ...) of every rank into (world·M, ...), in rank order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _read_position(queue: FeatureQueue, _incompatible_keys: object) -> None:
    queue._position = int(queue.position)
