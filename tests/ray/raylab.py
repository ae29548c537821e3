"""A real Ray of two nodes on loopback for the tests, and sweeps on it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from holding import ENVIRONMENT, hold, let_go

from densevit.config import yaml_file
from densevit.sweep.plan import make_plan
from densevit.utils.files import read_json

SOURCE = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "import sys; from densevit.cli.main import main_sweep; sys.exit(main_sweep())"]  # fmt: skip
MARK = "DENSEVIT_TEST_CLUSTER"
HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # Ray takes 127.0.0.1 for the machine's own address


def wait_for(condition, what="it", seconds=600):
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def marked(mark):
    """Return the processes with a mark in their environment, their own or inherited."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(folder.name)] if state not in "ZX" else []
    return found


def kill(pids, number=signal.SIGKILL):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Cluster:
    """Two nodes; each can be killed with everything that runs on it."""

    def __init__(self, folder):
        self.folder = folder  # short: it holds sockets
        self.token = folder / "token"
        self.token.write_text(uuid.uuid4().hex)
        self.token.chmod(0o600)
        with socket.socket() as free:
            free.bind((HEAD, 0))
            self.address = f"{HEAD}:{free.getsockname()[1]}"
        self.marks = {}

    def environment(self):
        return {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def start(self, node, *options):
        self.marks[node] = f"{node}-{uuid.uuid4().hex}"
        port = self.address.rpartition(":")[2]
        where = [
            "--head",
            "--port",
            port,
            "--include-dashboard",
            "false",
            "--temp-dir",
            self.folder,
        ]
        if node == OTHER:
            where = ["--address", self.address]
        command = [Path(sys.executable).with_name("ray"), "start", *where, "--node-ip-address", node,
                   "--object-store-memory", "80000000", "--disable-usage-stats", *options]  # fmt: skip
        environment = {**self.environment(), MARK: self.marks[node]}
        done = subprocess.run([str(word) for word in command], env=environment, timeout=600,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, node):
        """Kill exactly the started processes and their descendants."""
        mark = self.marks.pop(node)
        wait_for(lambda: kill(marked(mark)) or not marked(mark), "the end of a node")

    def stop(self):
        for node in list(self.marks):
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)


class Sweep:
    """A sweep of the tiny run in its own folder."""

    def __init__(self, folder, base, cluster=None, ray=None, **parts):
        self.outputs, self.file = folder / "out", folder / "sweep.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "base.yaml").write_text(yaml_file.dump(dict(base)))
        self.cluster = cluster
        wanted = {"name": folder.name, "base": "base.yaml", "launcher": "ray"}
        wanted["ray"] = {**({"address": cluster.address} if cluster else {}), **(ray or {})}
        self.file.write_text(yaml_file.dump({**wanted, **parts}))
        self.mark = f"sweep-{uuid.uuid4().hex}"

    @property
    def folders(self):
        plan = make_plan(self.file, self.outputs)
        return [plan.run_folder(run) for run in plan.runs]

    def start(self, *words):
        """Start the command as a process in its own session."""
        environment = self.cluster.environment() if self.cluster else dict(ENVIRONMENT)
        environment |= {MARK: self.mark}
        first, *rest = map(str, words or ("run", "--no-tracking"))
        command = [*COMMAND, first, str(self.file), *rest, "--outputs", str(self.outputs)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=environment, cwd=SOURCE, start_new_session=True)  # fmt: skip

    def run(self, *words, code=0):
        """Run the command to its end and return its output."""
        process = self.start(*words)
        told = process.communicate(timeout=600)[0]
        assert process.returncode == code, told
        return told

    def states(self):
        told = json.loads(self.run("status", "--json"))
        return [run["state"] for run in told["runs"]]

    def hold(self, step, run=None):
        hold(self.outputs, step, run)

    def let_go(self):
        let_go(self.outputs)

    def going(self, steps=1):
        """Return the runs that have trained so many steps in a process that is alive."""
        words = [(f, read_json(f.status_file) or {}) for f in self.folders]
        return [
            (f, word["pid"]) for f, word in words
            if word.get("state") == "running" and f.locked() and word.get("step", 0) >= steps
        ]  # fmt: skip

    def starts(self, folder):
        return (read_json(folder.provenance_file) or {"starts": []})["starts"]
