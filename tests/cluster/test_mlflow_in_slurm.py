"""MLflow and Slurm: the server as a job, and jobs that mirror their runs."""

import json
import re
import subprocess
import sys

import pytest
from holding import ENVIRONMENT
from lab import ROOT, kill, processes, wait_for
from servers import free_port, need, points, postgres_missing, query

from densevit.utils.files import read_json

pytestmark = pytest.mark.cluster

# On another node, under the server's name: rejected without the password, accepted with it.
CLIENT = """
import os, sys, urllib.error, urllib.request
from mlflow import MlflowClient
uri = os.environ["MLFLOW_TRACKING_URI"]
try:
    urllib.request.urlopen(uri + "/api/2.0/mlflow/experiments/get?experiment_id=0", timeout=300)
except urllib.error.HTTPError as error:
    print(error.code)
client = MlflowClient(uri)
if sys.argv[1] == "write":
    run = client.create_run(client.create_experiment("kept")).info.run_id
    client.log_metric(run, "loss", 0.5, step=1)
    client.log_text(run, "text", "file.txt")
(run,) = client.search_runs([client.get_experiment_by_name("kept").experiment_id])
print(run.data.metrics, [each.path for each in client.list_artifacts(run.info.run_id)])
"""


class Site:
    """The user's folders, and her shell."""

    def __init__(self, name, home, show):
        packages = next(path for path in sys.path if path.endswith("site-packages"))
        shown = show(packages=packages, code=str(ROOT))
        self.name, self.home, self.outputs = name, home, home / "my out's 50%"
        self.script = shown / "code" / "slurm" / "mlflow_server.sbatch"
        commands = home / "bin"
        commands.mkdir()
        (commands / "python").symlink_to("/usr/bin/python3")
        mlflow = commands / "mlflow"
        mlflow.write_text("#!/usr/bin/python3\nfrom mlflow.cli import cli\ncli()\n")
        mlflow.chmod(0o755)
        self.environment = {
            "HOME": home, "PATH": f"{commands}:/usr/bin:/bin", "PYTHONPATH": f"{shown / 'packages'}:{shown / 'code'}",
            "DENSEVIT_OUTPUTS": self.outputs, "DENSEVIT_MLFLOW_HOST": "0.0.0.0",
            "DENSEVIT_MLFLOW_PORT": free_port(),
        }  # fmt: skip

    def call(self, *words, code=0, **environment):
        """Run a command as the user and return its output."""
        variables = [f"{k}={v}" for k, v in {**self.environment, **environment}.items()]
        command = ["runuser", "-u", self.name, "--", "env", "-i", *variables, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=self.home)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout.strip()

    def start(self):
        """Submit the server and wait until it is ready; return the job and the environment
        variables to set."""
        job = self.call("sbatch", "--parsable", "--nodelist=node1", self.script)
        how = self.outputs / "mlflow-server.txt"
        log = self.home / f"mlflow-server-{job}.log"

        def told():
            running = job in self.call("squeue", "--noheader", "--format=%i").split()
            assert running, log.read_text() if log.exists() else "the job has ended"
            return how.exists() and how.read_text()

        text = wait_for(told, "the server")
        assert how.stat().st_mode & 0o777 == 0o600
        assert (self.outputs / "mlflow-password").stat().st_mode & 0o777 == 0o600
        return job, dict(re.findall(r"export (\w+)=(\S+)", text))

    def refused(self):
        """Return the message of a second server on the other node, which must not run."""
        log = self.home / "refused.log"
        self.call("sbatch", "--wait", "--nodelist=node2", f"--output={log}", self.script, code=2)
        return log.read_text()

    def ask(self, what, variables):
        return self.call(
            "srun", "--nodelist=node2", "python", "-c", CLIENT, what, **variables
        ).splitlines()

    def stop(self, job):
        """Cancel the job; check that nothing of it is left."""
        self.call("scancel", job)
        mine = ["pgrep", "-u", self.name]
        wait_for(lambda: subprocess.run(mine, check=False).returncode == 1, "the server's end")
        assert not (self.outputs / "mlflow-server.txt").exists()
        assert not (self.outputs / "mlflow-postgres" / "postmaster.pid").exists()
        left = ["find", "/tmp", "-maxdepth", "1", "-name", "mlflow-*", "-user", self.name]
        assert not subprocess.run(left, capture_output=True, check=True).stdout


@pytest.fixture
def site(user):
    need(postgres_missing())
    made = Site(*user)
    yield made
    made.call("scancel", "--user", made.name)


@pytest.mark.breaks
def test_a_server_with_a_password_that_keeps_what_it_has(site):
    job, variables = site.start()
    assert variables["MLFLOW_TRACKING_URI"] == f"http://node1:{site.environment['DENSEVIT_MLFLOW_PORT']}"  # fmt: skip
    assert site.ask("write", variables) == ["401", "{'loss': 0.5} ['file.txt']"]
    assert "runs on node1" in site.refused()
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert variables["MLFLOW_TRACKING_PASSWORD"] not in commands
    site.stop(job)

    left = site.outputs / "mlflow-postgres" / "postmaster.pid"
    left.touch()  # like that of a PostgreSQL on another node, which does not share the lock
    assert "has not ended on node1" in site.refused()
    left.unlink()

    job, again = site.start()
    assert again == variables
    assert site.ask("read", again) == ["401", "{'loss': 0.5} ['file.txt']"]
    site.stop(job)


def test_a_run_that_is_killed_under_one_launcher_and_resumed_by_another_is_one_run(sweep):
    runs = sweep("resumed", base={"epochs": 6}, grid={"cl_mode": ["dense"]})
    runs.hold(23)
    store = runs.outputs / "mlflow.db"
    command = runs.command("run", runs.file, "--launcher", "local")
    driver = subprocess.Popen(command, env=ENVIRONMENT)
    (folder,) = runs.folders()

    def sent():
        held = read_json(folder.tracking_file) or {}
        return held if held.get("offset") else None

    held = wait_for(sent, "the mirror's first numbers")
    own = f"WHERE run_uuid = '{held['mlflow_run_id']}'"
    assert query(store, f"SELECT status FROM runs {own}") == [("RUNNING",)]
    (mirror,) = pgrep(f"densevit.tracking {runs.outputs}")
    for pid in [*processes(folder), driver.pid, mirror]:
        kill(pid)
    driver.wait()
    lines = len(folder.metrics_file.read_text().splitlines())

    runs.let_go()
    runs.call("run")
    assert runs.wait() == ["finished"]
    wait_for(lambda: not pgrep(f"densevit.tracking {runs.outputs}"), "the job's mirror")
    wanted = {json.loads(line)["step"] for line in folder.metrics_file.read_text().splitlines()}
    assert len(wanted) > lines / 2
    counted = points(store)
    assert counted["metrics"] == counted["distinct"]
    of_loss = query(store, "SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step")
    assert of_loss == sorted(set(of_loss))
    assert {step for (step,) in query(store, "SELECT step FROM metrics")} == wanted
    tags = dict(query(store, f"SELECT key, value FROM tags {own}"))
    assert tags["densevit.launcher"] == "slurm"
    assert tags["densevit.job"] == runs.job(folder)
    assert tags["densevit.restarts"] == "1"
    assert query(store, "SELECT name, status FROM runs ORDER BY name") == [
        ("dense, seed 0", "FINISHED"), ("resumed", "FINISHED"),
    ]  # fmt: skip


def pgrep(text):
    found = subprocess.run(["pgrep", "-f", text], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]
