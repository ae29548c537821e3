"""The names of a run's test sets, without opening any."""

from __future__ import annotations

from densevit.config import RunConfig

# The shifted test sets of the drawn set `shapes`.
SHIFTED = ("shapes-a", "shapes-r", "shapes-v2", "shapes-stylized", "shapes-sketch")


def benchmark_names(config: RunConfig) -> list[str]:
    """The test sets that a run is evaluated on, val first; needs no data."""
    built_in = SHIFTED if config.dataset == "shapes" else ()
    return ["val", *built_in, *config.benchmarks]
