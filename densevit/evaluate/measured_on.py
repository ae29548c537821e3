"""The fingerprint of everything that the numbers of a run are measured on. Imports no torch."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np

from densevit.config.evaluation_names import DRAWN_TESTS
from densevit.config.probes import probes_by_name
from densevit.config.run_config import RunConfig
from densevit.data.datasets import Data
from densevit.data.fingerprint import fingerprint
from densevit.evaluate.probes.masks import MaskedImages, masked_sets

_MOST_MASKS = 200  # of a set: they are decoded


def measured_on(config: RunConfig, data: Data, size: int) -> dict[str, Any]:
    """Return the fingerprints of train, val, the benchmarks, and the images with masks of probes.

    `size` is the side of the model's input. Errors: `UserError` for masks that cannot be read.
    """
    found = data.fingerprint()
    if has_masks(config):
        for split, masked in zip(("train", "val"), masked_sets(config, size), strict=True):
            found["benchmarks"][f"masked {split}"] = _masked_fingerprint(masked)
    return found


def has_masks(config: RunConfig) -> bool:
    """Return True if the run reads masks from files; drawn masks follow from their version."""
    needed = any(probes_by_name()[name].masks for name in config.probes)
    return needed and (config.masks or config.dataset) not in DRAWN_TESTS


def _masked_fingerprint(masked: MaskedImages) -> dict[str, object]:
    count = min(_MOST_MASKS, len(masked))
    masks = sha256("\n".join(masked.classes).encode("utf-8", "surrogateescape"))
    for place in range(count):
        masks.update(np.ascontiguousarray(masked.mask(place * len(masked) // count)).tobytes())
    return {**fingerprint(masked.images), "masks": masks.hexdigest()[:16]}
