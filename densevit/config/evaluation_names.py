"""The names of what a run is evaluated on, without opening any data."""

from __future__ import annotations

from densevit.config.run_config import RunConfig

# The shifted test sets of the built-in data sets, in the order of their splits.
SHIFTED = ("shapes-a", "shapes-r", "shapes-v2", "shapes-stylized", "shapes-sketch")
MANY_SHIFTED = (
    "shapes-many-a", "shapes-many-r", "shapes-many-v2", "shapes-many-stylized",
    "shapes-many-sketch",
)  # fmt: skip
DRAWN_TESTS = {"shapes": SHIFTED, "shapes-many": MANY_SHIFTED}

CLEAN = ("imagenet", "val")  # unshifted test sets, in order of preference


def benchmark_names(config: RunConfig) -> list[str]:
    """Return the names that a run reports: test sets, val first, then probes. Opens no data."""
    if config.unlabelled:
        return list(config.probes)
    built_in = DRAWN_TESTS.get(config.dataset, ())
    return ["val", *built_in, *config.benchmarks, *config.probes]
