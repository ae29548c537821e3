"""The servers that the tracking tests use work as described."""

import http.client
import http.server
import socket
import threading
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest
import servers
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException


@pytest.fixture
def no_patience(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")


@pytest.mark.tracking
def test_a_server_on_postgresql_that_is_killed_paused_and_started_again(
    tmp_path, no_patience, monkeypatch
):
    servers.need(servers.postgres_missing())
    with servers.postgres(tmp_path) as store:
        with servers.mlflow_server(store, tmp_path / "artifacts", workers=1) as server:
            client = MlflowClient(server.uri)
            run = client.create_run(client.create_experiment("one")).info.run_id
            client.log_param(run, "lr", 0.1)
            for step, value in enumerate((1.0, 2.0, float("nan"))):
                client.log_metric(run, "loss", value, step=step, timestamp=1)
            client.log_metric(run, "loss", 7.0, step=1, timestamp=2)  # the step has been sent
            client.log_text(run, "", "empty.txt")
            assert [each.path for each in client.list_artifacts(run)] == ["empty.txt"]
            held = servers.points(store)
            assert held.pop("tags") >= 1
            assert held == {"metrics": 4, "distinct": 3, "nan": 1, "runs": 1, "params": 1}
            assert servers.query(store, "SELECT value FROM params") == [("0.1",)]

            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
            store.pause()  # PostgreSQL hangs, so the server hangs
            with pytest.raises(MlflowException):
                client.get_run(run)
            store.resume()
            server.kill()
            assert server.service.pids() == []
            with pytest.raises(MlflowException):
                client.get_run(run)
            server.start()
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
            assert client.get_run(run).data.params == {"lr": "0.1"}
            store.pause()
        assert server.service.pids() == []
    assert store.service.pids() == []
    assert not store.service.folder.exists()


@pytest.mark.tracking
def test_a_server_with_a_password_on_sqlite(tmp_path, monkeypatch, no_patience):
    store = f"sqlite:///{tmp_path / 'store.db'}"
    with servers.mlflow_server(
        store, tmp_path / "artifacts", workers=1, auth=("me", "a long password")
    ) as server:
        with pytest.raises(MlflowException, match="401"):
            MlflowClient(server.uri).search_experiments()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long password")
        MlflowClient(server.uri).create_experiment("mine")
    assert servers.points(tmp_path / "store.db") == servers.points(store)
    assert servers.query(store, "SELECT count(*) FROM experiments") == [(2,)]


class _Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.server.done += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def behind():
    """Return a proxy and the server behind it, which counts in `done` what it has done."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        server.done = 0
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with servers.proxy(f"http://127.0.0.1:{server.server_port}", seed=1) as proxy:
            yield proxy, server
        server.shutdown()


def post(proxy, path="/x", body=b"hello"):
    """Return the status (None if the connection was lost) and the response."""
    with closing(http.client.HTTPConnection(urlsplit(proxy.uri).netloc, timeout=300)) as connection:
        try:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (ConnectionError, http.client.HTTPException):
            return None, b""


def test_a_proxy_passes_on_delays_and_answers_itself(behind):
    proxy, server = behind
    assert post(proxy) == (200, b"hello")
    assert post(proxy, body=iter([b"he", b"llo"])) == (200, b"hello"), "also in chunks"
    proxy.delay = 0.3
    start = time.monotonic()
    assert post(proxy)[0] == 200
    assert time.monotonic() - start >= 0.3
    proxy.delay, proxy.status, proxy.only = 0, 503, "/a"
    assert [post(proxy, "/a")[0], post(proxy, "/b")[0]] == [503, 200]
    assert server.done == 4
    assert (proxy.requests, proxy.seen["POST /a"], proxy.passed.total()) == (5, 1, 4)


def test_a_proxy_drops_requests_and_answers(behind):
    proxy, server = behind
    proxy.drop = 1.0
    assert post(proxy)[0] is None
    assert server.done == 1, "the work was done all the same"
    proxy.drop, proxy.drop_before = 0.0, 1.0
    assert post(proxy)[0] is None
    assert server.done == 1
    proxy.drop_before, proxy.drop = 0.0, 0.5
    lost = [post(proxy)[0] is None for _ in range(40)]
    assert 8 < sum(lost) < 32
    assert server.done == 41


def test_a_proxy_refuses_and_comes_back(behind):
    proxy, server = behind
    with closing(http.client.HTTPConnection(urlsplit(proxy.uri).netloc, timeout=300)) as kept:
        kept.request("POST", "/x", b"1")
        kept.getresponse().read()
        proxy.refuse = True
        assert kept.sock.recv(1) == b"", "open connections have ended"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port))
    proxy.refuse = False
    assert post(proxy) == (200, b"hello")
    assert server.done == 2


def test_what_does_not_start_says_why(tmp_path):
    service = servers.Service(["sh", "-c", "echo no room >&2"], tmp_path, tmp_path / "log")
    with pytest.raises(RuntimeError, match="no room"):
        service.launch(lambda: False)
