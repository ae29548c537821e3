"""`densevit ui`: MLflow's pages on the outputs' store, and the addresses of what is worth a look.

The server is kept by a process between (`python -m densevit.ui_cli`), which ends with all that
MLflow has started as soon as this command is gone, however it ended.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urlencode

from densevit.commandline import add_outputs, add_tracking_uri, heed_tracking_uri
from densevit.errors import RunError, Unreachable, UserError, nearest
from densevit.passwords import without_password
from densevit.rundir import outputs_root, sweep_folder
from densevit.tracking.store import (
    database_file,
    is_server,
    open_store,
    opened,
    require_usable,
    store_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

HOST = "127.0.0.1"
PORT = 5000
PORTS = 100  # that are tried from there on
COMPARED = 200  # runs; the address names each of them, and a browser has to draw them
METRIC = "val/top1"  # what runs are sorted by, and whose curves are shown
START_SECONDS = 180.0  # on a slow file system MLflow is imported for a minute
GRACE_SECONDS = 0.5  # a server that only shows things has nothing to finish
PAGE = 1000
# MLflow begins with its pages for language models, where it finds no sign of what is here.
_TRAINING = {"workflowType": "machine_learning"}


def add_ui(commands: Any) -> None:
    ui = commands.add_parser(
        "ui",
        help="show the runs in MLflow's pages",
        description="Start MLflow's server for the runs in OUTPUTS, on this machine only, and "
        "print the addresses of the runs' table and of each sweep's comparison. Ctrl-C ends it. "
        "Where the runs are in an MLflow server already, only the addresses there are printed.",
    )  # fmt: skip
    ui.set_defaults(call=_ui)
    ui.add_argument("sweep", metavar="SWEEP|FILE", nargs="?", help="the name of a sweep, or its "
                    "YAML file (default: all)")  # fmt: skip
    add_outputs(ui)
    ui.add_argument(
        "--port", type=_port, metavar="P", help=f"default: {PORT}, or the next free one"
    )
    add_tracking_uri(ui)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port, from 1 to 65535")
    return int(text)


class _Ended(BaseException):
    """Ctrl-C or SIGTERM, which are how this command ends."""


def _ui(options: argparse.Namespace) -> int:
    def end(*_: object) -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # once is enough
        raise _Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _show(options)
    except _Ended:
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(options: argparse.Namespace) -> int:
    heed_tracking_uri(options.tracking_uri)
    outputs = outputs_root(options.outputs)
    uri = store_uri(outputs)
    name = None if options.sweep is None else _sweep_name(options.sweep)
    require_usable(uri)
    served = is_server(uri)
    if not served:
        _check_store(uri)
        port = _free_port(options.port)
    experiments, sweeps = _found(uri, outputs, name)
    if served:
        _print(without_password(uri).rstrip("/"), experiments, sweeps)
        return 0
    with _server(uri, port) as wait:
        _print(f"http://{HOST}:{port}", experiments, sweeps)
        print("Ctrl-C ends it", flush=True)
        wait()
    return 0


def _sweep_name(given: str) -> str:
    path = Path(given)
    if path.is_file():
        from densevit.sweep.spec import read_spec

        return read_spec(path).name
    if "/" in given or path.suffix in (".yaml", ".yml"):
        raise UserError(f"{given}: no such file (wanted a sweep's name, or its YAML file)")
    return given


def _check_store(uri: str) -> None:
    """MLflow would make an SQLite store where there is none."""
    database = database_file(uri)
    if database is not None and not database.is_file():
        raise UserError(f"{database}: there is nothing yet; run a sweep, or densevit sync")


def _free_port(wanted: int | None) -> int:
    if wanted is not None and not _is_free(wanted):
        raise UserError(f"--port: {wanted} is taken by something else")
    for port in range(PORT, PORT + PORTS) if wanted is None else [wanted]:
        if _is_free(port):
            return port
    raise UserError(f"--port: {PORT} to {PORT + PORTS - 1} are taken; give another")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as tried:
        # As the server does: connections that have just been closed do not count.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except PermissionError:
            raise UserError(f"--port: {port} may not be used by this account") from None
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class _Sweep:
    """A sweep as a store has it: how many runs, and the first of them in order of their start.

    `filter` is what finds them all, in MLflow's words.
    """

    name: str
    count: int
    runs: tuple[str, ...]
    experiments: tuple[str, ...]
    filter: str


def _found(uri: str, outputs: Path, name: str | None) -> tuple[dict[str, str], list[_Sweep]]:
    """The experiments with runs of this package, name to id; and the sweep, or all of them.

    Errors: `UserError` for a sweep that is not there; `Unreachable`.
    """
    # No `MlflowException` alone: what a database's driver raises is none, nor what requests does.
    try:
        client = _client(uri, outputs)
        experiments = {each.experiment_id: each.name for each in _all(client.search_experiments)}
        names = _sweep_names(client, list(experiments))
        chosen = names if name is None else [n for n in names if n == name]
        sweeps = [_sweep(client, list(experiments), each) for each in chosen]
        own = {each for sweep in sweeps for each in sweep.experiments}
        if name is None:
            own |= {each for each in experiments if _has_runs(client, each)}
    except Exception as error:
        reason = without_password(" ".join(str(error).split()))[:300]
        told = f"MLflow at {without_password(uri)}: {type(error).__name__}: {reason}"
        raise (UserError if database_file(uri) else Unreachable)(told) from None
    if name is not None and not sweeps:
        raise UserError(_unknown(name, names, outputs, uri))
    return {experiments[each]: each for each in experiments if each in own}, sweeps


def _client(uri: str, outputs: Path) -> MlflowClient:
    """A client of a store whose tables are there: a mirror may be making them just now."""
    try:
        with opened(uri, outputs) as client:
            client.search_experiments(max_results=1)
    except PermissionError:  # somebody else's outputs, where no lock can be made
        client = open_store(uri)
    return client


def _unknown(name: str, names: Sequence[str], outputs: Path, uri: str) -> str:
    where = database_file(uri) or without_password(uri)
    if sweep_folder(outputs, name).is_dir():
        return f"{name}: has no runs in {where} yet; run it, or densevit sync"
    return f"{name}: no such sweep in {where}; {nearest(name, names)}"


def _all(search: Any, *given: Any, **options: Any) -> Iterator[Any]:
    """What a search of MLflow's finds, page by page."""
    token = None
    while True:
        page = search(*given, **options, max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _sweep_names(client: MlflowClient, experiments: list[str]) -> list[str]:
    """Those with a parent run, the newest first."""
    found = _all(
        client.search_runs, experiments, "tags.`densevit.sweep` LIKE '%'",
        order_by=["attributes.start_time DESC"],
    )  # fmt: skip
    return list(dict.fromkeys(run.data.tags["densevit.sweep"] for run in found))


def _has_runs(client: MlflowClient, experiment: str) -> bool:
    return bool(client.search_runs([experiment], "tags.`densevit.run` LIKE '%'", max_results=1))


def _sweep(client: MlflowClient, experiments: list[str], name: str) -> _Sweep:
    wanted = f"tags.`densevit.sweeps` LIKE '%{name}%'"
    order = ["attributes.start_time ASC"]
    found: list[MlflowRun] = list(_all(client.search_runs, experiments, wanted, order_by=order))
    runs = [run for run in found if name in run.data.tags["densevit.sweeps"].split(",")]
    ids = tuple(run.info.run_id for run in runs)
    if len(runs) < len(found):  # those of a sweep with a longer name came along
        wanted = f"attributes.run_id IN ({', '.join(map(repr, ids[:COMPARED]))})"
    own = tuple(dict.fromkeys(run.info.experiment_id for run in runs))
    return _Sweep(name, len(runs), ids[:COMPARED], own, wanted)


def _print(base: str, experiments: dict[str, str], sweeps: list[_Sweep]) -> None:
    if not experiments:
        print(f"{'MLflow':<10} {base}", flush=True)
    for name, number in experiments.items():
        table = _address(base, f"experiments/{number}/runs", {})
        print(f"{'runs':<10} {table}  ({name})", flush=True)
    for sweep in sweeps:
        _print_sweep(base, sweep)


def _print_sweep(base: str, sweep: _Sweep) -> None:
    told = f"{sweep.count} run{'' if sweep.count == 1 else 's'}"
    if sweep.count > len(sweep.runs):
        told += f"; compared are the first {len(sweep.runs)}"
    print(f"{sweep.name}: {told}")
    for number in sweep.experiments:
        best = {
            "searchFilter": sweep.filter, "orderByKey": f"metrics.`{METRIC}`",
            "orderByAsc": "false",
        }  # fmt: skip
        print(f"{'  best':<10} {_address(base, f'experiments/{number}/runs', best)}")
    if sweep.runs:
        which = {"runs": _json(sweep.runs), "experiments": _json(sweep.experiments)}
        curve = {"metric": _json(METRIC), "plot_metric_keys": _json([METRIC]), "x_axis": "step"}
        print(f"{'  compare':<10} {_address(base, 'compare-runs', which)}")
        print(f"{'  curves':<10} {_address(base, 'metric', which | curve)}", flush=True)


def _address(base: str, page: str, query: dict[str, str]) -> str:
    return f"{base}/#/{page}?{urlencode(query | _TRAINING, quote_via=quote, safe='')}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


@contextmanager
def _server(uri: str, port: int) -> Iterator[Any]:
    """MLflow's server, answering; yields what waits until it ends.

    Errors: `RunError` if it ends by itself.
    """
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "densevit.ui_cli", str(port)]
        process = subprocess.Popen(  # noqa: S603  (our own module)
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(uri),
            start_new_session=True,  # Ctrl-C in the terminal is this process's alone
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RunError(_failed(log))
                time.sleep(0.1)

            def wait() -> NoReturn:
                process.wait()
                raise RunError(_failed(log))

            yield wait
        finally:
            process.stdin.close()
            process.wait()


def _environment(uri: str) -> dict[str, str]:
    """The store is no argument, since it may hold a password."""
    return {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _answers(port: int) -> bool:
    # Not by urllib, which would ask a proxy of the environment.
    with (
        suppress(OSError, http.client.HTTPException),
        closing(http.client.HTTPConnection(HOST, port, timeout=5)) as connection,
    ):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def _failed(log: IO[bytes]) -> str:
    """The last line of a log, which of a traceback is what it is about."""
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"MLflow's server does not run: {without_password(last)[:500]}"


def keep(port: int) -> None:
    """Run MLflow's server until standard input is closed, and then end it with what it started."""
    # The group is signalled, with this process in it; unlike SIG_IGN this is not handed down.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # By its module: a script's first line may name a Python that has moved.
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port),
               "--workers", "1", "--uvicorn-opts", "--log-level warning"]  # fmt: skip
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603  (a list, no shell)
    _wait_for_end(server)
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)  # and this process


def _wait_for_end(server: subprocess.Popen[bytes]) -> None:
    """Until standard input is closed, or the server has ended."""
    import select

    while server.poll() is None:
        if select.select([0], [], [], 0.2)[0] and not os.read(0, 4096):
            return


if __name__ == "__main__":
    keep(int(sys.argv[1]))
