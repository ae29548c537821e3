"""`densevit ui` as a user starts it: the URLs, and MLflow's pages behind them."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import servers
from mlflow.entities import Metric

from densevit.cli import ui as ui_cli
from densevit.cli.main import main
from densevit.cli.parser import sweep_name
from densevit.tracking import ui_links
from densevit.tracking.store import open_store

pytestmark = pytest.mark.tracking

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = ["dense-seed0-aaaaaa", "global-seed0-bbbbbb", "none-seed0-cccccc"]
TOP1 = dict(zip(NAMES, (50.0, 70.0, 60.0), strict=True))


@pytest.fixture(autouse=True)
def _default_store(monkeypatch):
    """Unset the store; what a command sets is undone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


@pytest.fixture(scope="module")
def filled(tmp_path_factory, empty_store):
    """Return outputs with a store that has a sweep of three runs, and another one with one of them
    and a new run."""
    outputs = tmp_path_factory.mktemp("out puts")
    shutil.copy(empty_store, outputs)
    client = open_store(f"sqlite:///{outputs / 'mlflow.db'}")
    experiment = client.create_experiment("tests", artifact_location=(outputs / "art").as_uri())
    client.create_experiment("of somebody else")
    parents = {
        name: client.create_run(experiment, start, {"densevit.sweep": name}, name).info.run_id
        for name, start in (("one", 1001), ("one_more", 1000))
    }
    for number, name in enumerate(NAMES):
        sweeps = "one,one_more" if number == 0 else "one"
        _child(client, experiment, name, sweeps, parents["one"])
    _child(client, experiment, "other-seed0-dddddd", "one_more", parents["one_more"])
    for parent in parents.values():
        client.set_terminated(parent, "FINISHED", 9000)
    (outputs / "sweeps" / "unsent").mkdir(parents=True)
    return outputs


def _child(client, experiment, name, sweeps, parent):
    tags = {"densevit.run": name, "densevit.sweeps": sweeps, "mlflow.parentRunId": parent}
    run = client.create_run(experiment, 2000 + len(name), tags, name).info.run_id
    client.log_param(run, "cl_mode", name.partition("-")[0])
    best = TOP1.get(name, 1.0)
    points = [Metric("val/top1", best - 10 + 5 * step, 3000 + step, step) for step in range(3)]
    client.log_batch(run, metrics=points)
    client.set_terminated(run, "FINISHED", 8000)


class Command:
    """The command in its own terminal; `mark` is in the environment of every process that it
    starts."""

    def __init__(self, folder, port, *arguments):
        self.port = port
        self.mark, self.said = uuid.uuid4().hex, folder / "said"
        self.errors = folder / "errors"
        program = "import sys; from densevit.cli.main import main; sys.exit(main())"
        with self.said.open("w") as said, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, "ui", "--port", str(port), *map(str, arguments)],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=errors,
                env={**os.environ, "DENSEVIT_TEST_MARK": self.mark, "PYTHONSAFEPATH": "1"}, start_new_session=True,
            )  # fmt: skip

    def living(self):
        """Return its living processes with their command lines."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (process / "environ").read_bytes():
                    told = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(process.name)] = told
            except OSError:  # it has just ended, or is another account's
                continue
        return found

    def ready(self):
        """Return its output once the server responds."""

        def there():
            assert self.process.poll() is None, self.errors.read_text()
            found = re.search(r"\?key=[\w-]+", self.said.read_text())
            with suppress(OSError):
                return found and get(f"http://127.0.0.1:{self.port}/health{found[0]}") == "OK"

        servers.wait_for(there, "the server")
        return self.said.read_text()

    def interrupt(self):
        """Press Ctrl-C, which a terminal sends to all processes in its foreground."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(60)


@contextmanager
def started(folder, port, *arguments):
    command = Command(folder, port, *arguments)
    try:
        yield command
    finally:
        for pid in command.living():
            os.kill(pid, signal.SIGKILL)
        command.process.wait()


def addresses(said):
    """Return (word before, URL) of each line with a URL."""
    return re.findall(r"^ *(\S+) +(http://\S+)", said, re.MULTILINE)


def query(address):
    """Return the query string, which follows the fragment."""
    fragment = urlsplit(address).fragment
    return {key: value for key, (value,) in parse_qs(fragment.partition("?")[2]).items()}


def get(address):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(address, timeout=300) as answer:
        return answer.read().decode()


def dom(address):
    """Return the text of a page after its scripts have run."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
             "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", f"--user-data-dir={profile}", "--virtual-time-budget=20000",
             "--window-size=1500,1000", "--dump-dom", address],
            capture_output=True, text=True, check=True, timeout=600,
        )  # fmt: skip
    return re.sub(r"<(style|script)\b.*?</\1>", "", done.stdout, flags=re.DOTALL)


def test_the_pages_show_the_sweep_and_ctrl_c_leaves_no_process(tmp_path, filled, capsys):
    servers.need("" if BROWSER else "no chromium on PATH")
    port = servers.free_port()
    here = tmp_path / "here"  # a folder of somebody who waits for a command in it
    (here / "densevit").mkdir(parents=True)
    for name in ("yaml.py", "uvloop.py", "densevit/__init__.py"):
        (here / name).write_text("open('executed', 'w')")
    with started(here, port, "one", "--outputs", filled) as command:
        said = command.ready()
        assert not (here / "executed").exists()
        assert said.splitlines()[1] == "one: 3 runs"
        assert "MLflow's server starts; only these addresses open it, and Ctrl-C ends it\n" in said
        found = dict(addresses(said))
        assert list(found) == ["runs", "best", "compare", "curves"]
        base = f"http://127.0.0.1:{port}"
        for address in found.values():
            assert address.startswith(f"{base}/?key=")
            assert "<html" in get(address)
        key = re.search(r"\?key=([\w-]+)", said)[1]
        assert not any(key in told for told in command.living().values()), "ps shows it to all"
        # For others it is an ordinary server with a password.
        uri = base.replace("//", f"//me:{key}@")
        assert main(["ui", "one", "--outputs", str(tmp_path), "--tracking-uri", uri]) == 0
        without = {name: address.replace(f"?key={key}", "") for name, address in found.items()}
        assert dict(addresses(capsys.readouterr().out)) == without

        with ThreadPoolExecutor() as pool:
            table, best, compared, curves = pool.map(dom, found.values())
        assert ">one<" in table
        assert ">one_more<" in table
        assert "6</strong> matching runs" in table
        assert not [name for name in NAMES if f">{name}<" in table]  # they are collapsed under it
        places = [best.index(f">{name}<") for name in sorted(NAMES, key=lambda n: -TOP1[n])]
        assert places == sorted(places)
        assert "other-seed0-dddddd" not in best
        assert "Comparing 3 Runs from 1 Experiment" in compared
        assert "Parallel Coordinates Plot" in compared
        assert all(f">{name}<" in compared for name in NAMES)
        assert all(f"{name} (val/top1)" in curves for name in NAMES)

        assert any("uvicorn" in told for told in command.living().values())
        assert not any("sqlite:" in told for told in command.living().values())
        command.interrupt()
        servers.wait_for(lambda: not command.living(), "the end of the server")
        assert command.said.read_text().startswith(said)
    kept = {"said", "errors", "yaml.py", "uvloop.py", "densevit"}
    assert {path.name for path in here.iterdir()} == kept


def ui(capsys, *arguments):
    """Return the exit code and the one line of output."""
    code = main(["ui", *map(str, arguments)])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return code, shown.err.removeprefix("densevit: ").strip()


def test_mistakes_are_one_line(tmp_path, filled, capsys, monkeypatch):
    monkeypatch.setattr(ui_cli, "_become_server", lambda *_: pytest.fail("a server was started"))
    database = filled / "mlflow.db"
    for words, wanted in (
        (["onee"], f"onee: no such sweep in {database}; did you mean 'one'?"),
        (["unsent"], f"unsent: has no runs in {database} yet; run it, or densevit sync"),
        (["gone.yaml"], "gone.yaml: no such file (give a sweep's name or its YAML file)"),
        (["--tracking-uri", "htpp://host"], "MLflow store htpp://host: unknown kind 'htpp'; did you mean 'http'?"),
    ):  # fmt: skip
        assert ui(capsys, *words, "--outputs", filled) == (2, wanted)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    there_is_nothing = f"{tmp_path / 'mlflow.db'}: no such store yet; run a sweep, or densevit sync"
    assert ui(capsys, "--outputs", tmp_path) == (2, there_is_nothing)
    assert list(tmp_path.iterdir()) == []
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = f"--port: {port} is in use; give another"
        assert ui(capsys, "--outputs", filled, "--port", port) == (2, told)
    (tmp_path / "mlflow.db").write_text("no database")
    code, told = ui(capsys, "--outputs", tmp_path)
    assert code == 2
    assert told.startswith(f"MLflow at sqlite:///{tmp_path / 'mlflow.db'}: ")


def test_a_server_that_does_not_answer_is_one_line_without_a_password(tmp_path, capsys, monkeypatch):  # fmt: skip
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://me:secret@127.0.0.1:{servers.free_port()}"
    code, told = ui(capsys, "--outputs", tmp_path, "--tracking-uri", uri)
    assert code == 75
    assert told.startswith(f"MLflow at {uri.replace('me:secret@', '')}: ")
    assert "secret" not in told


def test_a_sweep_by_its_file_and_many_runs(tmp_path, filled, capsys, monkeypatch):
    file = tmp_path / "sweep.yaml"
    file.write_text("name: one_more\nfixed: {dataset: shapes}\ngrid: {cl_mode: [none]}\n")
    assert sweep_name(str(file)) == "one_more"
    monkeypatch.setattr(ui_links, "COMPARED", 2)
    uri = f"sqlite:///{filled / 'mlflow.db'}"
    experiments, (one,) = ui_links.find_sweeps(uri, filled, "one")
    assert list(experiments) == ["tests"]
    ui_links.print_links("http://host", experiments, [one])
    said = capsys.readouterr().out
    assert "one: 3 runs; the first 2 are compared\n" in said
    found = dict(addresses(said))
    assert query(found["compare"])["runs"].count('"') == 4
    assert query(found["compare"])["experiments"] == f'["{experiments["tests"]}"]'
    # `_` matches any character in LIKE, and `one` is in `one_more`: such sweeps are named by their
    # ids.
    assert query(found["best"])["searchFilter"].startswith("attributes.run_id IN ('")
    _, (more,) = ui_links.find_sweeps(uri, filled, "one_more")
    assert more.filter == "tags.`densevit.sweeps` LIKE '%one_more%'"
    assert more.count == 2
