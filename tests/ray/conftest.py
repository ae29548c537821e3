"""Fixtures of the Ray cluster of these tests."""

import tempfile
from pathlib import Path

import pytest
from raylab import HEAD, OTHER, Cluster, Sweep

pytest.importorskip("ray", reason="Ray is not installed: pip install 'densevit[ray]'")


@pytest.fixture(scope="session")
def cluster():
    """Provide two nodes of 2 CPUs, the first with a simulated GPU; shared by all tests."""
    made = Cluster(Path(tempfile.mkdtemp(prefix="ray-")))
    try:
        made.start(HEAD, "--num-cpus", "2", "--num-gpus", "1")
        made.start(OTHER, "--num-cpus", "2")
        yield made
    finally:
        made.stop()


@pytest.fixture
def sweep(tmp_path, tiny, cluster):
    """Return a function that makes a sweep of the tiny run on the cluster."""

    def make(name, base=None, **parts):
        return Sweep(tmp_path / name, {**tiny, **(base or {})}, cluster, **parts)

    return make
