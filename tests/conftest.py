"""Shared fixtures: a tiny run and tiny image folders, so that real runs take seconds."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings
from pictures import write_images
from tiny import tiny_run

settings.register_profile("densevit", deadline=None, derandomize=True)
settings.load_profile("densevit")

# Some tests press Ctrl-C. A shell starts a background job, such as this one may be, without SIGINT.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Many small models on few cores: one thread each is fastest, and the same on every machine.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def blobs(tmp_path_factory) -> Path:
    """Return an image folder `blobs` with train/, val/ and a shifted test set `dark`."""
    root = tmp_path_factory.mktemp("blobs")
    write_images(root / "train", {"red": 16, "green": 12, "blue": 14}, 1)
    write_images(root / "val", {"red": 5, "green": 5, "blue": 5}, 2)
    write_images(root / "dark", {"red": 4, "green": 4, "blue": 4}, 3)
    return root


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """Return an SQLite file with MLflow's tables, to copy: creating them takes seconds."""
    from densevit.tracking.store import open_store

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{file}").get_experiment_by_name("any")
    return file


@pytest.fixture
def tiny(blobs) -> dict:
    """Return the settings of a run on `blobs` that takes a second."""
    return tiny_run(blobs)
