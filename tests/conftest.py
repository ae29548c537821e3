"""What the tests share: a tiny run and tiny folders of pictures, so that real runs take seconds."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from pictures import write_images
from tiny import tiny_run

settings.register_profile("densevit", deadline=None, derandomize=True)
settings.load_profile("densevit")

# Many small models on few cores: one thread each is fastest and the same everywhere.
os.environ["OMP_NUM_THREADS"] = "1"


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
    return tiny_run(blobs)
