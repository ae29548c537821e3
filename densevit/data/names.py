"""The names of what a run is evaluated on, without opening any data."""

from __future__ import annotations

from densevit.config import RunConfig

# The shifted test sets of the drawn set `shapes`.
SHIFTED = ("shapes-a", "shapes-r", "shapes-v2", "shapes-stylized", "shapes-sketch")

CLEAN = ("imagenet", "val")  # unshifted test sets: the first that there is


def benchmark_names(config: RunConfig) -> list[str]:
    """What a run has numbers of: its test sets, val first, and its probes; needs no data."""
    built_in = SHIFTED if config.dataset == "shapes" else ()
    return ["val", *built_in, *config.benchmarks, *config.probes]
