"""Real stores for the tests: PostgreSQL, an MLflow server, and a proxy that injects faults."""

import configparser
import contextlib
import fcntl
import functools
import http.client
import http.server
import os
import random
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

REQUIRED = os.environ.get("DENSEVIT_REQUIRE_TRACKING") == "1"


def need(why: str) -> None:
    """Skip the test if there is a reason; fail it instead if tracking tests are required."""
    import pytest

    if why:
        (pytest.fail if REQUIRED else pytest.skip)(why)


def free_port() -> int:
    """Return a loopback port that nobody listens on and that no outgoing connection will get."""
    while True:
        port = 10000 + secrets.randbelow(20000)
        with closing(socket.socket()) as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    """Return whether something listens on a loopback port."""
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 10).close()
        return True
    return False


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.02)


class Service:
    """Processes that are identified by their working folder, which no other process uses.

    A process group or a session does not suffice: each process of PostgreSQL has its own.
    """

    def __init__(self, command: list[str], folder: Path, log: Path, **options) -> None:
        self.command, self.folder, self.log = command, folder, log
        self.options = {"cwd": folder, "start_new_session": True, **options}
        self.process: subprocess.Popen | None = None

    def launch(self, ready: Callable[[], bool]) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self.options
            )

        def up() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.command[0]} has ended: {self.log.read_text()[-4000:]}")
            return ready()

        try:
            wait_for(up, f"{self.command[0]}, which says: {self.log.read_text()[-4000:]}")
        except BaseException:
            self.kill()
            raise

    def pids(self) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                if (process / "cwd").readlink() == self.folder:
                    found.append(int(process.name))
        return found

    def signal(self, number: int) -> None:
        """Send a signal to each process: SIGSTOP makes a service hang, SIGCONT continues it."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Send SIGKILL to all processes, including stopped ones, until none is left."""

        def none_left() -> bool:
            self.signal(signal.SIGKILL)  # again, because another one may just have started
            return not self.pids()

        wait_for(none_left, "the end of killed processes")
        if self.process is not None:
            self.process.wait()


@functools.cache
def postgres_missing() -> str:
    """Return why there is no PostgreSQL for tests; "" if there is one. Root installs Debian's
    packages."""
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "psycopg2 is not installed: pip install 'densevit[postgres]'"
    if _programs() is not None:
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "initdb and postgres are not there, and only root can install them by apt-get"
    told = _install("postgresql")
    return "" if _programs() is not None else f"PostgreSQL could not be installed: {told}"


def _programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, which is not on Debian's PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    for folder in [*folders, *reversed(debian)]:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    return None


def _install(package: str) -> str:
    """Install Debian's package without starting its daemon; return the end of apt-get's output."""
    get = ["apt-get", "-qy", "-o", "DPkg::Lock::Timeout=120"]
    install = [*get, "install", "--no-install-recommends", package]
    policy = Path("/usr/sbin/policy-rc.d")
    # The lock of slurm/local-cluster.sh, which also prevents packages from starting daemons.
    with Path("/run/densevit-slurm.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ours = not policy.exists()
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            told = ""
            for command in (install, [*get, "update"], install):
                done = subprocess.run(
                    command,
                    env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                told = (done.stderr or done.stdout)[-500:]
                if command is install and done.returncode == 0:
                    break
            return told
        finally:
            if ours:
                policy.unlink()


class Served:
    """A service with its processes, and faults that tests can cause."""

    service: Service

    def kill(self) -> None:
        self.service.kill()

    def pause(self) -> None:
        """Make it hang: it accepts connections and does not respond."""
        self.service.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.service.signal(signal.SIGCONT)


class Postgres(str, Served):
    """The URI of a PostgreSQL, and its processes."""

    def start(self) -> None:
        self.service.launch(lambda: _answers(self))


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """Start a PostgreSQL on loopback with a password; its log is in the folder."""
    programs = _programs()
    assert programs is not None, postgres_missing()
    account = _account()
    folder.mkdir(parents=True, exist_ok=True)
    # The account that root uses for it may not enter the folders of tests.
    place = Path(tempfile.mkdtemp(prefix="postgres-", dir=None if account else folder)).resolve()
    data, port, password = place / "data", free_port(), secrets.token_hex(8)
    (place / "password").write_text(password)
    if account:
        shutil.chown(place, account["user"])
    command = [str(programs / "postgres"), "-D", str(data)]
    settings = {
        "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "",
        "fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "jit": "off",
        "shared_buffers": "16MB", "dynamic_shared_memory_type": "mmap",
    }  # fmt: skip
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    # With the driver: for a plain postgresql://, SQLAlchemy 2.1 uses psycopg 3 and 2.0 uses
    # psycopg2.
    uri = Postgres(f"postgresql+psycopg2://densevit:{password}@127.0.0.1:{port}/postgres")
    uri.service = Service(command, data, folder / "postgres.log", **account)
    try:
        _make_database(programs / "initdb", place, account)
        uri.start()
        yield uri
    finally:
        uri.kill()
        shutil.rmtree(place)


def _account() -> dict[str, str]:
    """Return the account that runs PostgreSQL for root, who may not run it."""
    import grp
    import pwd

    if os.geteuid() != 0:
        return {}
    names = {user.pw_name for user in pwd.getpwall()}
    entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    group = grp.getgrgid(entry.pw_gid).gr_name
    return {"user": entry.pw_name, "group": group, "extra_groups": []}


def _make_database(initdb: Path, place: Path, account: Mapping[str, str]) -> None:
    word = ["--username=densevit", f"--pwfile={place / 'password'}", "--auth=scram-sha-256"]
    options = ["--no-sync", "--encoding=UTF8", "--locale=C", "--pgdata", str(place / "data")]
    done = subprocess.run(
        [initdb, *word, *options], capture_output=True, text=True, check=False, cwd=place, **account
    )
    if done.returncode:
        raise RuntimeError(f"initdb: {done.stderr or done.stdout}")


def _answers(uri: str) -> bool:
    import psycopg2

    with suppress(psycopg2.OperationalError):
        psycopg2.connect(plain(uri), connect_timeout=2).close()
        return True
    return False


def plain(uri: str) -> str:
    """Return a PostgreSQL URI without SQLAlchemy's driver, as PostgreSQL's own programs expect it."""
    return uri.replace("postgresql+psycopg2:", "postgresql:")


class MlflowServer(Served):
    """A running `mlflow server`; `user` and `password` if it requires them."""

    def __init__(self, service: Service, uri: str) -> None:
        self.service, self.uri, self.log = service, uri, service.log

    def start(self) -> None:
        """Start it, also again on the same port, and wait until it responds."""
        self.service.launch(lambda: _is_healthy(self.uri))


@contextmanager
def mlflow_server(
    store_uri: str,
    artifacts: Path,
    port: int | None = None,
    workers: int = 2,
    auth: tuple[str, str] | None = None,
) -> Iterator[MlflowServer]:
    """Start a real `mlflow server`, which takes 4 to 6 s; `auth` is an admin's name and password.

    The log is `mlflow-server.log` next to the artifacts.
    """
    port = port or free_port()
    artifacts.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="mlflow-server-")).resolve()
    # Without this process's settings for its own stores. The URI may contain a password, so it is
    # not an argument, which `ps` would show.
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name} | {
        "MLFLOW_BACKEND_STORE_URI": store_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
               "--workers", str(workers), "--serve-artifacts", "--artifacts-destination", str(artifacts.absolute())]  # fmt: skip
    if auth:
        command += ["--app-name", "basic-auth"]
        environment |= _authentication(folder, *auth)
    log = artifacts.absolute().parent / "mlflow-server.log"
    service = Service(command, folder, log, env=environment)
    server = MlflowServer(service, f"http://127.0.0.1:{port}")
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


def _authentication(folder: Path, user: str, password: str) -> dict[str, str]:
    settings = configparser.ConfigParser(interpolation=None)
    settings["mlflow"] = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{folder / 'users.db'}",
        "admin_username": user,
    }
    with (folder / "auth.ini").open("w") as file:
        settings.write(file)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }


def _is_healthy(uri: str) -> bool:
    # Not with urllib, which would use a proxy from the environment.
    with (
        suppress(OSError, http.client.HTTPException),
        closing(http.client.HTTPConnection(urlsplit(uri).netloc, timeout=2)) as connection,
    ):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


class Proxy:
    """A proxy before a server that injects faults, which tests can change while it runs.

    These concern only requests whose path contains `only`:
    `delay`: seconds before the response is passed on, after the server has done the work;
    `drop`: the share of requests whose response is lost after the server has done the work;
    `drop_before`: the share that never reaches the server;
    `status`: the response to the `status_share` of requests, instead of the server's.
    `refuse` concerns all requests: nobody listens, and open connections are closed.
    """

    def __init__(self, target: str, seed: int = 0) -> None:
        self.target, self.port = urlsplit(target).netloc, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.only, self.delay = "", 0.0
        self.drop, self.drop_before = 0.0, 0.0
        self.status: int | None = None
        self.status_share = 1.0
        self.seen: Counter[str] = Counter()  # "POST /path" to its number of requests
        self.passed: Counter[str] = Counter()  # the same, of requests that reached the server
        self.over = threading.Event()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: http.server.ThreadingHTTPServer | None = None

    @property
    def requests(self) -> int:
        return self.seen.total()

    def happens(self, share: float) -> bool:
        with self._lock:  # the same draws in each run of a test, if requests come in order
            return share > 0 and self._random.random() < share

    def count(self, counter: Counter[str], what: str) -> None:
        with self._lock:
            counter[what] += 1

    @property
    def refuse(self) -> bool:
        return self._listener is None

    @refuse.setter
    def refuse(self, wanted: bool) -> None:
        if wanted == self.refuse:
            return
        if wanted:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None
            for connection in list(self._open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            return
        self._listener = _Listener(("127.0.0.1", self.port), _Handler)
        self._listener.proxy = self
        serve = functools.partial(self._listener.serve_forever, poll_interval=0.02)
        threading.Thread(target=serve, daemon=True).start()


@contextmanager
def proxy(target_uri: str, seed: int = 0) -> Iterator[Proxy]:
    """Start a proxy before a server; set its attributes to change its behavior."""
    made = Proxy(target_uri, seed)
    made.refuse = False
    try:
        yield made
    finally:
        made.over.set()
        made.refuse = True


class _Listener(http.server.ThreadingHTTPServer):
    proxy: Proxy
    daemon_threads = True

    def handle_error(self, *_) -> None:
        """Ignore clients that have closed their connection."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.server.proxy._open.add(self.connection)

    def finish(self) -> None:
        self.server.proxy._open.discard(self.connection)
        super().finish()

    def log_message(self, *_) -> None:
        pass

    def handle_any(self) -> None:
        proxy, what = self.server.proxy, f"{self.command} {self.path.partition('?')[0]}"
        body = self._body()
        proxy.count(proxy.seen, what)
        trouble = proxy.only in self.path
        if trouble and proxy.happens(proxy.drop_before):
            self._hang_up()
            return
        if trouble and proxy.status is not None and proxy.happens(proxy.status_share):
            self._answer(proxy.status, [], b"the proxy makes trouble")
            return
        try:
            status, headers, content = self._ask(body)
        except (OSError, http.client.HTTPException) as error:
            self._answer(502, [], f"no answer from the server: {error}".encode())
            return
        proxy.count(proxy.passed, what)
        if trouble and proxy.happens(proxy.drop):
            self._hang_up()
            return
        if trouble and proxy.delay:
            proxy.over.wait(proxy.delay)
        self._answer(status, headers, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        dropped = {"connection", "transfer-encoding", "content-length", "expect"}
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        with closing(http.client.HTTPConnection(self.server.proxy.target, timeout=60)) as server:
            server.request(
                self.command, self.path, body or None, {**headers, "Connection": "close"}
            )
            answer = server.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        dropped = {"connection", "transfer-encoding", "content-length", "keep-alive"}
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in dropped:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def query(store: str | Path, sql: str) -> list[tuple]:
    """Return the result of a database query; the store is a PostgreSQL URI, an SQLite one, or a
    file."""
    if str(store).startswith("postgresql"):
        import psycopg2

        connected = psycopg2.connect(plain(str(store)))
    else:
        file = Path(str(store).removeprefix("sqlite:///")).absolute()
        connected = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=30)
    with (
        contextlib.closing(connected) as connection,
        contextlib.closing(connection.cursor()) as rows,
    ):
        rows.execute(sql)
        return [tuple(row) for row in rows.fetchall()]


def points(store: str | Path) -> dict[str, int]:
    """Count the content of a store in its database.

    `metrics` are rows, `distinct` the different (run, metric, step) among them, fewer if a point
    was sent twice; `nan` are rows with NaN; then the rows of `runs`, `params`, `tags`.
    """
    counted = {
        "metrics": "SELECT count(*) FROM metrics",
        "distinct": "SELECT count(*) FROM (SELECT DISTINCT run_uuid, key, step FROM metrics) AS d",
        "nan": "SELECT count(*) FROM metrics WHERE is_nan",
        **{table: f"SELECT count(*) FROM {table}" for table in ("runs", "params", "tags")},
    }
    return {name: query(store, sql)[0][0] for name, sql in counted.items()}
