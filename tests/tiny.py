"""The settings of a run that takes a second, and the parts of its lines that no machine changes."""

import re
from pathlib import Path
from typing import Any

TINY = {
    "dataset": "blobs",
    "model_name": "vit_tiny_patch16_224",
    "model_kwargs": {
        "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2,
    },
    "batch_size": 8,
    "epochs": 2,
    "warmup_epochs": 0,
    "learning_rate": 1e-3,
    "queue_size": 100,
    "sampled_patches": 3,
    "dense_dim": 16,
    "projection_hidden_dim": 32,
    "workers": 0,
    "log_every": 2,
    "device": "cpu",
}  # fmt: skip


_MACHINE = re.compile(r"time|time/.*|system/.*|train/images_per_second|train/peak_memory_mib")


def without_machine(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line of metrics.jsonl without the values that depend on the machine."""
    return {name: value for name, value in line.items() if not _MACHINE.fullmatch(name)}


def tiny_run(blobs: Path) -> dict[str, Any]:
    """Return the settings, on the images of the fixture `blobs`."""
    return {**TINY, "data_dir": str(blobs), "benchmarks": {"dark": str(blobs / "dark")}}
