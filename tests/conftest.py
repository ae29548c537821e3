"""What the tests share: a tiny run and tiny folders of pictures, so that real runs take seconds."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from pictures import write_images

settings.register_profile("densevit", deadline=None, derandomize=True)
settings.load_profile("densevit")

# Many small models on few cores: one thread each is fastest and the same everywhere.
os.environ["OMP_NUM_THREADS"] = "1"

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


@pytest.fixture(scope="session")
def blobs(tmp_path_factory) -> Path:
    """An image folder `blobs` with train/, val/ and a shifted test set `dark`."""
    root = tmp_path_factory.mktemp("blobs")
    write_images(root / "train", {"red": 16, "green": 12, "blue": 14}, 1)
    write_images(root / "val", {"red": 5, "green": 5, "blue": 5}, 2)
    write_images(root / "dark", {"red": 4, "green": 4, "blue": 4}, 3)
    return root


@pytest.fixture
def tiny(blobs) -> dict:
    """The settings of a run that takes a second, on `blobs`."""
    return {**TINY, "data_dir": str(blobs), "benchmarks": {"dark": str(blobs / "dark")}}
