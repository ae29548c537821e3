"""slurm/local-cluster.sh stops what it has started, and harms nothing else."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from lab import SCRIPT, script, slurm, wait_for

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["begin"], 2), (["start", "--nodes"], 2), (["start", "--nodes", "0"], 2),
     (["start", "--nodes", "2; id"], 2), (["stop", "--all"], 2), (["daemon", "kill"], 2)],
    ids=str,
)  # fmt: skip
def test_a_mistake_shows_how_it_is_used(arguments, code):
    done = script(*arguments)
    assert done.returncode == code
    assert "local-cluster.sh start" in done.stderr


def test_the_command_beside_a_cluster_gives_its_exit_code(cluster):
    assert script("with", "sh", "-c", "sinfo -h && exit 5").returncode == 5
    assert script("status").returncode == 0, "it ran before, and so goes on"


def test_a_second_start_says_so_and_other_options_are_refused(cluster):
    assert "runs already" in script("start").stdout
    done = script("start", "--nodes", "3")
    assert done.returncode == 2
    assert "stop" in done.stderr


def test_only_root_may(cluster):
    done = subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", "bash", "-s", "start"],
                          input=SCRIPT.read_text(), capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (2, "local-cluster: only root can do this")


@pytest.mark.breaks
def test_a_node_gets_its_port_back_from_a_child_that_hangs(cluster, tmp_path):
    pids = {line.split()[0]: line.split()[1] for line in script("status").stdout.splitlines()}
    script("daemon", "kill", "slurmd-node2", check=True)
    perl = shutil.copy(shutil.which("perl"), tmp_path / "slurmd")
    listening = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', "
    listening += "LocalPort => 17002, Listen => 1, ReuseAddr => 1) or die $@; sleep 600"
    child = subprocess.Popen(["nsenter", "--mount", "--uts", "--target", pids["slurmd-node1"],
                              perl, "-e", listening, "--", "-N", "node2"])  # fmt: skip
    wait_for(lambda: ":426A 00000000:0000 0A" in Path("/proc/net/tcp").read_text())
    done = script("daemon", "start", "slurmd-node2")
    assert done.returncode == 0, done.stderr
    assert child.wait(60) == -signal.SIGKILL


@pytest.mark.breaks
def test_a_pid_file_is_read_once_its_daemon_has_written_it(cluster, tmp_path):
    shim = tmp_path / "slurmd"
    shim.write_text("#!/bin/sh\n: >/run/densevit-slurm/slurmd-node2.pid\nsleep 1\n"
                    f'exec {shutil.which("slurmd", path="/usr/sbin")} "$@"\n')  # fmt: skip
    shim.chmod(0o755)
    script("daemon", "kill", "slurmd-node2", check=True)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = script("daemon", "start", "slurmd-node2", env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    assert script("status").returncode == 0


@pytest.mark.breaks
def test_what_it_starts_is_stopped_and_a_foreign_cluster_is_left_alone(other_cluster, tmp_path):
    other_cluster("--nodes", "3", "--gpus", "0")
    assert len(slurm("sinfo", "-h", "-N", "-p", "lab").splitlines()) == 3
    assert script("status").returncode == 0
    names = script("status").stdout.splitlines()
    pids = [int(line.split()[1]) for line in names if line.endswith(" up") and "  -  " not in line]
    assert len(pids) >= 6, names
    # Like a node daemon's child that hangs before it becomes a job: its pid is not recorded.
    hanging = shutil.copy(shutil.which("sleep"), tmp_path / "slurmd")
    child = subprocess.Popen(["nsenter", "--mount", "--uts", "--target", str(pids[-1]), hanging, "600"])  # fmt: skip
    wait_for(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "slurmd\n")
    assert script("stop").returncode == 0
    assert child.wait(60) == -signal.SIGKILL
    alive = [pid for pid in pids if _alive(pid)]
    assert alive == []
    assert script("status").returncode == 3
    assert "nothing" in script("stop").stdout
    script("stop", "--wipe")
    foreign = Path("/etc/slurm/slurm.conf")
    assert not foreign.exists()
    foreign.write_text("ClusterName=somebody_elses\n")
    try:
        done = script("start")
        assert done.returncode == 2
        assert "slurm.conf" in done.stderr
        assert foreign.read_text() == "ClusterName=somebody_elses\n"
    finally:
        foreign.unlink()


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state not in "ZX"
