"""What the tests of the mirror share: folders for outputs, and stores."""

import shutil
import subprocess
from types import SimpleNamespace

import pytest

from densevit.tracking import beside
from densevit.tracking.store import open_store


@pytest.fixture(autouse=True)
def _default_store(monkeypatch):
    """Whatever store the caller's shell belongs to, and whoever they are there."""
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.fixture
def new_outputs(tmp_path):
    """A folder without a store."""
    return tmp_path / "out puts"  # a space, as some home folders have


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{file}").get_experiment_by_name("any")
    return file


@pytest.fixture
def outputs(new_outputs, empty_store):
    """A folder with an empty store: to make one takes seconds."""
    new_outputs.mkdir()
    shutil.copy(empty_store, new_outputs)
    return new_outputs


@pytest.fixture
def forked_mirrors(monkeypatch):
    """Mirrors that this process starts are forked, with MLflow imported."""
    from forkedmirror import ForkedMirror

    stand_in = SimpleNamespace(
        Popen=ForkedMirror, PIPE=None, TimeoutExpired=subprocess.TimeoutExpired
    )
    monkeypatch.setattr(beside, "subprocess", stand_in)
