"""Fixtures of the mirror's tests: outputs folders and stores."""

import shutil

import pytest

from densevit.tracking import mirror_process


@pytest.fixture(autouse=True)
def _default_store(monkeypatch):
    """Remove the store and the account that the caller's shell has set."""
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.fixture
def new_outputs(tmp_path):
    """Return a folder without a store."""
    return tmp_path / "out puts"  # a space, as in some home folders


@pytest.fixture
def outputs(new_outputs, empty_store):
    """Return a folder with an empty store: creating one takes seconds."""
    new_outputs.mkdir()
    shutil.copy(empty_store, new_outputs)
    return new_outputs


@pytest.fixture
def forked_mirrors(monkeypatch):
    """Fork the mirrors that this process starts, with MLflow imported."""
    from forkedmirror import STAND_IN

    monkeypatch.setattr(mirror_process, "subprocess", STAND_IN)
