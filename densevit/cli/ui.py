"""`densevit ui`: print the addresses of a sweep's pages, then become MLflow's server.

If the store is an MLflow server, only the addresses of its pages are printed.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import socket
import sys
from contextlib import closing
from pathlib import Path

from densevit.cli.parser import (
    Commands,
    add_outputs,
    add_tracking_uri,
    set_tracking_uri,
    sweep_name,
)
from densevit.runs.directory import outputs_root
from densevit.tracking import guarded_server
from densevit.tracking.store_uri import database_file, is_server, require_usable, store_uri
from densevit.tracking.ui_links import find_sweeps, print_links
from densevit.utils.console import say
from densevit.utils.errors import UserError
from densevit.utils.redact import without_password

HOST = "127.0.0.1"  # of this machine, whose other users need the key
PORT = 5000
PACKAGES = Path(__file__).resolve().parents[2]  # the folder that holds densevit/


def add_ui(commands: Commands) -> None:
    ui = commands.add_parser(
        "ui",
        help="show the runs in MLflow's pages",
        description="Print the addresses of the runs' table and of each sweep's comparison, and "
        "run MLflow's server for OUTPUTS on this machine until Ctrl-C. "
        "If the store is an MLflow server, only the addresses of its pages are printed.",
    )  # fmt: skip
    ui.set_defaults(call=_ui)
    ui.add_argument("sweep", metavar="SWEEP|FILE", nargs="?", help="the name of a sweep, or its "
                    "YAML file (default: all)")  # fmt: skip
    add_outputs(ui)
    ui.add_argument("--port", type=_port, default=PORT, metavar="P", help="default: %(default)s")
    add_tracking_uri(ui)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port, from 1 to 65535")
    return int(text)


def _ui(options: argparse.Namespace) -> int:
    set_tracking_uri(options.tracking_uri)
    outputs = outputs_root(options.outputs)
    uri = store_uri(outputs)
    name = None if options.sweep is None else sweep_name(options.sweep)
    require_usable(uri)
    if is_server(uri):
        print_links(without_password(uri).rstrip("/"), *find_sweeps(uri, outputs, name))
        return 0
    _check_store(uri)
    _check_free(options.port)
    found = find_sweeps(uri, outputs, name)
    key = secrets.token_urlsafe(24)
    print_links(f"http://{HOST}:{options.port}", *found, key)
    say("MLflow's server starts; only these addresses open it, and Ctrl-C ends it")
    _become_server(uri, options.port, outputs / "mlartifacts", key)
    return 0


def _become_server(uri: str, port: int, artifacts: Path, key: str) -> None:
    """Replace this process by `mlflow server` behind a guard."""
    environment = {
        **os.environ,
        **guarded_server.environment("look", artifacts, key),
        "MLFLOW_BACKEND_STORE_URI": uri,  # no argument: it may hold a password
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    # uvicorn would import modules of the current folder, which may be somebody else's.
    uvicorn = f"--log-level warning --app-dir {shlex.quote(str(PACKAGES))}"
    # By its module: a script's first line may name a Python that has moved.
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port),
               "--app-name", guarded_server.APP, "--artifacts-destination", artifacts.as_uri(),
               "--workers", "1", "--uvicorn-opts", uvicorn]  # fmt: skip
    os.execve(sys.executable, command, environment)  # noqa: S606  (a list, no shell)


def _check_store(uri: str) -> None:
    """Check that an SQLite store exists: MLflow would create it."""
    database = database_file(uri)
    if database is not None and not database.is_file():
        raise UserError(f"{database}: no such store yet; run a sweep, or densevit sync")


def _check_free(port: int) -> None:
    with closing(socket.socket()) as server:
        # As the server does: connections that have just been closed do not count.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((HOST, port))
        except PermissionError:
            raise UserError(f"--port: {port} may not be used by this account") from None
        except OSError:
            raise UserError(f"--port: {port} is in use; give another") from None
