"""Seeds of a run's independent random streams, derived from its seed and a stream number."""

from __future__ import annotations

import numpy as np

# The streams of a run: image order, crops, patch draws, global sampling, mixup.
ORDER, VIEWS, DRAWS, GLOBAL, MIXUP = 1, 2, 3, 4, 5


def derived_seed(*parts: int) -> int:
    """Return a seed that is a function of integers: equal parts, equal seed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
