"""MLflow's server with a guard: it serves the artifacts of one folder, and only to those who know a
secret.

Loopback is no wall between the users of a machine, and MLflow lets whoever reaches it choose where
a run's artifacts are: any file of the account that runs the server can be read and replaced.
MLflow has no option against that (3.17), so requests pass a list of what the pages and the mirror
need. `mlflow server --app-name densevit-guard` starts it; `environment` says with what settings.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

Mode = Literal["look", "write"]
APP = "densevit-guard"  # of the entry point
_PREFIX = "DENSEVIT_GUARD_"
_COOKIE = "densevit"
_MOST_BYTES = 1_000_000  # of a request that creates an experiment

# The paths after /api or /ajax-api: what the pages and our mirror read, and what the mirror writes.
_READS = re.compile(
    r"/2\.0/mlflow/(experiments/(get|get-by-name|search)|runs/(get|search)|artifacts/list"
    r"|metrics/get-history(-bulk|-bulk-interval)?|logged-models(/search|/[\w-]+)"
    r"|logged-models/[\w-]+/artifacts/(files|directories)"
    r"|experiments/search-datasets|(model-versions|registered-models)/search)"
    r"|/2\.0mlflow/experiments/search-datasets|/3\.0/mlflow/server-info"
)
_SEARCHES = re.compile(r".*/search(-datasets)?")  # reads that are sent as POST
_WRITES = re.compile(
    r"/2\.0/mlflow/(experiments/(create|restore|set-experiment-tag)"
    r"|runs/(create|update|delete|restore|log-batch|log-metric|log-parameter|set-tag|delete-tag"
    r"|log-model|outputs)"
    r"|logged-models(/[\w-]+(/tags|/params)?)?)"
)
_ACCOUNTS = re.compile(r"/2\.0/mlflow/users/[\w-]+")  # where MLflow asks for a password
_ARTIFACTS = re.compile(r"/2\.0/mlflow-artifacts/(artifacts|mpu/(create|complete|abort))(/.*)?")
_PAGES = re.compile(r"/(|health|version|get-artifact|(static-files|build)/.*)")
# An experiment is created with these; its artifacts are where the server has its own.
_EXPERIMENT = ("name", "tags")


def environment(mode: Mode, root: Path, secret: str) -> dict[str, str]:
    """Return the settings of a guard, for the process that becomes the server.

    mode: whether the server takes new runs, or only shows them.
    root: the folder below which artifacts are read.
    secret: what a client must know; empty where MLflow asks for a password.
    """
    return {f"{_PREFIX}MODE": mode, f"{_PREFIX}ROOT": str(root), f"{_PREFIX}SECRET": secret}


def create_app() -> ASGIApp:
    """Return MLflow's application behind a guard with the settings of the environment."""
    mode, root, secret = (os.environ[f"{_PREFIX}{name}"] for name in ("MODE", "ROOT", "SECRET"))
    if secret:
        from mlflow.server.fastapi_app import app
    else:
        from mlflow.server.auth import create_app as with_passwords

        app = with_passwords()
    return guarded(app, mode == "write", Path(root).resolve(), secret)


def guarded(app: ASGIApp, writable: bool, root: Path, secret: str) -> ASGIApp:
    """Return an application that passes on only what the guard allows."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError("only HTTP is served")
        if secret and not _knows(scope, secret):
            await _answer(send, 403, "Open the address that was printed when the server started.")
            return
        path, method = scope["path"], scope["method"]
        accounts = not secret and _ACCOUNTS.fullmatch(_call(path))
        why = "" if accounts else _forbidden(path, method, writable) or _outside(scope, root)
        if path == "/graphql" and not why:
            body, receive = await _whole_body(receive)
            # Its runs would have to be looked up; the pages list artifacts by another call.
            why = "Artifacts are listed by another call." if b"mlflowListArtifacts" in body else ""
        if why:
            await _answer(send, 403, why)
            return
        if path.endswith("/mlflow/experiments/create"):
            receive = await _only_known_fields(receive, scope)
        await app(scope, receive, _with_cookie(send, scope, secret))

    return guard


def _knows(scope: Scope, secret: str) -> bool:
    """Return True if a request holds the secret: in its address, its cookie or its header."""
    given = [*_query(scope).get("key", []), _cookie(scope)]
    kind, _, value = _header(scope, "authorization").partition(" ")
    if kind.lower() == "bearer":
        given.append(value)
    elif kind.lower() == "basic":
        try:
            given.append(base64.b64decode(value).decode().partition(":")[2])
        except ValueError:
            return False
    return any(hmac.compare_digest(text.encode(), secret.encode()) for text in given)


def _forbidden(path: str, method: str, writable: bool) -> str:
    """Return why a request is not allowed, empty if it is."""
    if ".." in Path(unquote(unquote(path))).parts:
        return "No path may leave its folder."
    if _PAGES.fullmatch(path):
        return "" if method in ("GET", "HEAD") else "This page can only be read."
    if path == "/graphql":  # MLflow's schema has only queries
        return ""
    call = _call(path)
    reads = method in ("GET", "HEAD") or (method == "POST" and _SEARCHES.fullmatch(call))
    if _READS.fullmatch(call) and reads:
        return ""
    if _ARTIFACTS.fullmatch(call) and (method in ("GET", "HEAD") or writable):
        return "Artifacts are not deleted here." if method == "DELETE" else ""
    if writable and _WRITES.fullmatch(call) and method in ("POST", "PATCH"):
        return ""
    return "This server does not offer that."


def _call(path: str) -> str:
    """Return a path of MLflow's interface without what differs for pages and for clients."""
    return re.sub(r"^/(ajax-)?api(?=/)", "", path)


def _outside(scope: Scope, root: Path) -> str:
    """Return why the artifacts of a request are out of bounds, empty if they are not.

    A database may hold a run whose artifacts somebody has put elsewhere.
    """
    path, query = scope["path"], _query(scope)
    if any(".." in Path(unquote(text)).parts for text in query.get("path", [])):
        return "No path may leave its folder."
    model = re.search(r"/logged-models/([\w-]+)/artifacts/", path)
    run = [*query.get("run_uuid", []), *query.get("run_id", [])]
    if not (model or path == "/get-artifact" or path.endswith("/mlflow/artifacts/list")):
        return ""
    if len(set(run)) > 1:  # MLflow takes one of them
        return "Only one run is read at a time."
    from mlflow.exceptions import MlflowException
    from mlflow.server.handlers import _get_tracking_store

    store: Any = _get_tracking_store()
    try:
        if model:
            address = store.get_logged_model(model[1]).artifact_location
        else:
            address = store.get_run(run[0]).info.artifact_uri
    except (MlflowException, IndexError):
        return "There is no such run."
    parts = urlsplit(address)
    if parts.scheme == "mlflow-artifacts":
        return ""
    inside = Path(unquote(parts.path)).resolve().is_relative_to(root)
    return (
        "" if parts.scheme in ("", "file") and inside else f"Only artifacts below {root} are read."
    )


async def _only_known_fields(receive: Receive, scope: Scope) -> Receive:
    """Return the body of a request to create an experiment, without a place of its artifacts."""
    body, receive = await _whole_body(receive)
    try:
        given = json.loads(body)
        kept = {name: given[name] for name in _EXPERIMENT if name in given}
    except (ValueError, TypeError):
        kept = {}
    body = json.dumps(kept).encode()
    scope["headers"] = [
        (name, value) for name, value in scope["headers"] if name != b"content-length"
    ] + [(b"content-length", str(len(body)).encode())]
    return _replayed(body, receive)


async def _whole_body(receive: Receive) -> tuple[bytes, Receive]:
    """Return the body of a request, or its beginning if it is too long, and a `receive` of that."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body") or len(body) > _MOST_BYTES:
            return body, _replayed(body, receive)


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_cookie(send: Send, scope: Scope, secret: str) -> Send:
    """Return a `send` that lets a browser keep the secret of an address."""
    if not secret or "key" not in _query(scope):
        return send
    cookie = f"{_cookie_name(scope)}={secret}; HttpOnly; SameSite=Strict; Path=/"

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"set-cookie", cookie.encode())]
        await send(message)

    return sending


async def _answer(send: Callable[[Any], Awaitable[None]], status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


def _query(scope: Scope) -> Mapping[str, list[str]]:
    return parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def _header(scope: Scope, name: str) -> str:
    found = [value for key, value in scope["headers"] if key == name.encode()]
    return found[0].decode("latin-1") if found else ""


def _cookie_name(scope: Scope) -> str:
    """Return the name of the cookie: browsers send those of one port to all ports of a host."""
    return f"{_COOKIE}-{(scope.get('server') or ('', 0))[1]}"


def _cookie(scope: Scope) -> str:
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(_header(scope, "cookie"))
    except CookieError:
        return ""
    found = cookies.get(_cookie_name(scope))
    return found.value if found else ""
