"""Fixtures of the local Slurm cluster, which is started if possible, and of sweeps on it."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from lab import LONG, TWO, Sweep, finished_here, results, script, wait_for

from densevit.runs.directory import RunFolder

REQUIRED = os.environ.get("DENSEVIT_REQUIRE_SLURM") == "1"


def _start(*options):
    """Start the local cluster; return why it cannot be started, or ""."""
    if os.geteuid() != 0:
        return "only root may set up a local Slurm"
    if shutil.which("apt-get") is None:
        return "a local Slurm is set up from Debian's packages"
    done = script("start", *options)
    return (
        ""
        if done.returncode == 0
        else f"slurm/local-cluster.sh start: {done.stderr or done.stdout}"
    )


def _need(why):
    if why:
        (pytest.fail if REQUIRED else pytest.skip)(why)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Provide a Slurm of two nodes with accounting, shared by all tests that leave it intact."""
    lock = Path(tmp_path_factory.getbasetemp()).parent / "cluster.lock"
    with lock.open("a") as file:  # one of pytest's processes starts it for all
        fcntl.flock(file, fcntl.LOCK_EX)
        _need(_start())


@pytest.fixture
def other_cluster():
    """Return a function that starts a cluster with other options; the usual one is restored
    afterwards."""
    changed = []

    def start(*options):
        changed.append(script("stop", "--wipe"))
        _need(_start(*options))

    yield start
    if changed:
        script("stop", "--wipe")
        _need(_start())


@pytest.fixture
def sweep(tmp_path, tiny, cluster):
    """Return a function that makes a sweep of the tiny run."""

    def make(name="tiny", profile=None, base=None, **parts):
        settings = {**tiny, "health_every": 1000, **(base or {})}
        return Sweep(tmp_path / name, settings, profile, **parts)

    return make


@pytest.fixture
def long_runs(sweep):
    """Return a function that makes a sweep of runs that can be held in the middle."""

    def make(name, **parts):
        return sweep(name, base=LONG, **{**TWO, **parts})

    return make


@pytest.fixture
def undisturbed(tmp_path_factory):
    """Return a function that returns the metrics of a run that nothing interrupts."""
    # Trained once, for all of pytest's processes.
    session = tmp_path_factory.getbasetemp()
    known = (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "undisturbed"
    known.mkdir(exist_ok=True)

    def numbers(run):
        folder = RunFolder(known / run.id)
        with (known / f"{run.id}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.results_file.exists():
                finished_here(folder.path, run.config)
        return results(folder)

    return numbers


@pytest.fixture
def user(cluster):
    """Return a user of this machine and her home. Folders that only root may enter are mounted
    read-only for her."""
    name, home, shown = "densevit-tester", Path("/tmp/densevit-tester"), Path("/tmp/densevit-shown")
    mounted = []

    def show(**places):
        for place, source in places.items():
            (shown / place).mkdir(parents=True)
            subprocess.run(["mount", "--bind", source, shown / place], check=True)
            mounted.append(shown / place)
            subprocess.run(["mount", "-o", "remount,bind,ro", shown / place], check=True)
        for node in ("node1", "node2"):  # they see the mounts that existed when they started
            script("daemon", "kill", f"slurmd-{node}", check=True)
            script("daemon", "start", f"slurmd-{node}", check=True)
        return shown

    subprocess.run(["useradd", "--no-create-home", "--home-dir", home, name], check=True)
    home.mkdir()
    shutil.chown(home, name)
    yield name, home, show
    subprocess.run(["pkill", "-KILL", "-u", name], check=False)
    wait_for(
        lambda: (
            subprocess.run(["pgrep", "--runstates", "RSDT", "-u", name], check=False).returncode
            == 1
        ),
        "the end of her processes",
    )
    # Remove nothing that may still contain a mount.
    for place in mounted:
        subprocess.run(["umount", "--lazy", place], check=True)
        place.rmdir()
    subprocess.run(["userdel", name], check=True)
    shutil.rmtree(home)
    shown.rmdir()
