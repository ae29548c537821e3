"""The guard before MLflow's server, attacked by an account that knows nothing, and by one that knows the
secret."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import servers
from mlflow import MlflowClient

from densevit.tracking import guarded_server
from densevit.tracking.guarded_server import guarded
from densevit.utils.files import write_atomic

SECRET = "s3cret"
SERVER = {"server": ("127.0.0.1", 5000)}


def call(method, path, query="", headers=(), body=b"", mode="look", secret=SECRET, root="/nowhere"):
    """Return the status of a request, and what has passed the guard."""
    passed = {}

    async def app(scope, receive, send):
        passed.update(path=scope["path"], body=(await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "query_string": query.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in headers], **SERVER,
    }  # fmt: skip
    asyncio.run(guarded(app, mode == "write", root, secret)(scope, receive, send))
    return sent[0]["status"], passed, dict(sent[0]["headers"])


BEARER = [("authorization", f"Bearer {SECRET}")]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", [], 403),
        ("key=wrong", [], 403),
        ("key=", [("authorization", "Bearer ")], 403),
        ("", [("authorization", "Basic !!")], 403),
        ("", [("cookie", f"densevit-5001={SECRET}")], 403),
        (f"key={SECRET}", [], 200),
        ("", BEARER, 200),
        ("", [("authorization", "Basic bWU6czNjcmV0")], 200),  # me:s3cret
        ("", [("cookie", f"densevit-5000={SECRET}; other=1")], 200),
    ],
)
def test_nobody_enters_without_the_secret(query, headers, status):
    assert call("GET", "/", query, headers)[0] == status


def test_a_browser_keeps_the_secret_of_the_address():
    cookie = call("GET", "/", f"key={SECRET}")[2][b"set-cookie"].decode()
    assert cookie == f"densevit-5000={SECRET}; HttpOnly; SameSite=Strict; Path=/"
    assert b"set-cookie" not in call("GET", "/", "", BEARER)[2]


READS = [
    ("GET", "/static-files/a.js"), ("POST", "/ajax-api/2.0/mlflow/runs/search"), ("POST", "/graphql"),
    ("GET", "/api/2.0/mlflow/runs/get"), ("GET", "/ajax-api/2.0/mlflow/metrics/get-history-bulk"),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts/1/abc/artifacts/config.yaml"),
]  # fmt: skip
WRITES = [
    ("POST", "/api/2.0/mlflow/runs/create"), ("POST", "/api/2.0/mlflow/runs/log-batch"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/abc/artifacts/config.yaml"),
    ("POST", "/api/2.0/mlflow/logged-models"), ("PATCH", "/api/2.0/mlflow/logged-models/m-1"),
]  # fmt: skip
NEVER = [
    ("POST", "/api/2.0/mlflow/model-versions/create"), ("POST", "/api/2.0/mlflow/webhooks"),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact"), ("POST", "/api/3.0/mlflow/traces"),
    ("GET", "/ajax-api/2.0/mlflow/get-trace-artifact"), ("GET", "/model-versions/get-artifact"),
    ("GET", "/api/2.0/mlflow/model-versions/get-download-uri"),
    ("POST", "/ajax-api/2.0/mlflow/gateway-proxy"), ("PATCH", "/get-artifact"),
    ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/1"), ("POST", "/api/2.0/mlflow/users/create"),
    ("POST", "/api/2.0/mlflow/runs/search/../create-promptlab-run"),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts/1/..%2f..%2fetc"), ("GET", "/static-files/../x"),
    ("POST", "//api/2.0/mlflow/runs/create"), ("GET", "/api/api/2.0/mlflow/runs/get"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("requests", "looking", "writing"),
    [(READS, 200, 200), (WRITES, 403, 200), (NEVER, 403, 403)],
    ids=["reads", "writes", "never"],
)
def test_only_what_pages_and_mirror_need_passes(requests, looking, writing):
    for method, path in requests:
        got = [call(method, path, headers=BEARER, mode=mode)[0] for mode in ("look", "write")]
        assert got == [looking, writing], (method, path)


def test_where_mlflow_asks_for_passwords_it_also_makes_accounts():
    path = "/api/2.0/mlflow/users/create"
    assert call("POST", path, mode="write", secret="")[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a", "tags": [], "artifact_location": "file:///root"},
        {"name": "a", "tags": [], "artifactLocation": "file:///root"},
    ],
)
def test_an_experiment_does_not_choose_where_its_artifacts_are(body):
    path = "/api/2.0/mlflow/experiments/create"
    status, passed, _ = call("POST", path, "", BEARER, json.dumps(body).encode(), "write")
    assert (status, json.loads(passed["body"])) == (200, {"name": "a", "tags": []})
    for nonsense in (b"{", b"[1]", b"null"):
        assert json.loads(call("POST", path, "", BEARER, nonsense, "write")[1]["body"]) == {}


def test_artifacts_of_two_runs_are_not_asked_for_at_once():
    """The guard would look up one of them, and MLflow show the other."""
    for path in ("/get-artifact", "/ajax-api/2.0/mlflow/artifacts/list"):
        assert call("GET", path, "path=a&run_uuid=good&run_id=evil", BEARER)[0] == 403
    query = json.dumps({"query": "{mlflowListArtifacts(input: {runId: 1}) {files {path}}}"})
    assert call("POST", "/graphql", "", BEARER, query.encode())[0] == 403
    assert call("POST", "/graphql", "", BEARER, b"{}")[1]["body"] == b"{}"


ASK = r"""
import sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for line in sys.stdin:
    method, address, key, body = line.rstrip("\n").split("\t")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(address, body.encode() or None, headers, method=method)
    try:
        with opener.open(request, timeout=300) as answer:
            print(answer.status, answer.read()[:200])
    except urllib.error.HTTPError as error:
        print(error.code, "")
"""


def asked_by_nobody(*requests):
    """Return the answers to requests of an account that has nothing on this machine."""
    lines = "".join("\t".join(request) + "\n" for request in requests)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/env", "-i",
               "python3", "-c", ASK]  # fmt: skip
    done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd="/", check=True)
    return [(line.split()[0], line.partition(" ")[2]) for line in done.stdout.splitlines()]


@pytest.mark.tracking
def test_another_account_reads_and_writes_nothing(tmp_path, outputs, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    servers.need("" if os.geteuid() == 0 else "only root can act as another account")
    port, artifacts = servers.free_port(), outputs / "mlartifacts"
    artifacts.mkdir()
    write_atomic(tmp_path / "private" / "key", "private words")
    environment = {
        **os.environ, **guarded_server.environment("write", artifacts, SECRET),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{outputs / 'mlflow.db'}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", guarded_server.APP, "--port",
               str(port), "--workers", "1", "--artifacts-destination", artifacts.as_uri()]  # fmt: skip
    service = servers.Service(command, tmp_path, tmp_path / "log", env=environment)
    home = f"http://127.0.0.1:{port}"
    try:
        service.launch(lambda: servers.listens(port))
        api = f"{home}/api/2.0/mlflow"
        place = json.dumps({"name": "theirs", "artifact_location": (tmp_path / "private").as_uri()})
        without = [("GET", f"{home}/", "", ""), ("POST", f"{api}/experiments/create", "", place),
                   ("GET", f"{home}/health", "wrong", "")]  # fmt: skip
        assert [status for status, _ in asked_by_nobody(*without)] == ["403"] * 3

        # A colleague who knows the token gets no file beyond the artifacts.
        ((status, _),) = asked_by_nobody(("POST", f"{api}/experiments/create", SECRET, place))
        assert status == "200"
        client = MlflowClient(home)
        theirs = client.get_experiment_by_name("theirs")
        assert theirs.artifact_location.startswith("mlflow-artifacts:/")
        run = client.create_run(theirs.experiment_id).info.run_id
        client.log_text(run, "hello", "note.txt")
        assert [each.path for each in client.list_artifacts(run)] == ["note.txt"]
        read = f"{home}/get-artifact?run_uuid={run}&path="
        # An older server may have let somebody put a run's artifacts elsewhere.
        with closing(sqlite3.connect(outputs / "mlflow.db")) as database, database:
            elsewhere = client.create_run(theirs.experiment_id).info.run_id
            database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?",
                             [(tmp_path / "private").as_uri(), elsewhere])  # fmt: skip
        tries = [
            ("GET", f"{read}note.txt", SECRET, ""),
            ("GET", f"{read}../../../../private/key", SECRET, ""),
            ("GET", f"{read}%252e%252e/%252e%252e/private/key", SECRET, ""),
            ("GET", f"{home}/get-artifact?run_uuid={elsewhere}&path=key", SECRET, ""),
            ("GET", f"{api}/artifacts/list?run_id={elsewhere}", SECRET, ""),
            ("GET", f"{home}/api/2.0/mlflow-artifacts/artifacts/..%2f..%2fprivate/key", SECRET, ""),
            ("PUT", f"{home}/api/2.0/mlflow-artifacts/artifacts/%2e%2e/%2e%2e/private/key", SECRET, "x"),
            ("POST", f"{home}/ajax-api/2.0/mlflow/upload-artifact?run_uuid={elsewhere}&path=key", SECRET, "x"),
            ("POST", f"{api}/model-versions/create", SECRET,
             json.dumps({"name": "m", "source": (tmp_path / "private").as_uri()})),
            ("POST", f"{api}/webhooks", SECRET, "{}"),
        ]  # fmt: skip
        answers = asked_by_nobody(*tries)
        assert answers[0] == ("200", "b'hello'")
        assert {status for status, _ in answers[1:]} <= {"400", "403", "404"}
        assert not any("private words" in text for _, text in answers)
        assert (tmp_path / "private" / "key").read_text() == "private words"
        told = [line for line in (tmp_path / "log").read_text().splitlines() if "Traceback" in line]
        assert told == []
    finally:
        service.kill()
