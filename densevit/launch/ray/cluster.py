"""The Ray cluster that runs a sweep: one started on this machine, or an existing one."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densevit.launch.ray.fork_server import code_path
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.spec import check_address
from densevit.utils.errors import UserError, reason_of

ANSWER_SECONDS = 5.0
# Environment variables that are passed on to other machines.
_FORWARDED = ("DENSEVIT_DATA", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME")
# Ray's name of a resource to the amount that a process needs.
Needs = dict[str, float]


def _import_ray(where: str) -> None:
    """Set Ray's environment variables and import it.

    Errors: `UserError` if it is not installed, or if others can read the token of a cluster.
    """
    # Before the import, which reads them.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # no verbosity silences its banner
    if where == "local":
        # Whoever has the token runs programs as this user. Ray would write it to a file that all
        # users can read; in the environment, it is known to our processes alone.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ["RAY_AUTH_MODE"] = "token"
    elif _has_token():
        # A cluster requires its token by default, but a client sends it only in this mode.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # The last result of a run has no metric.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # Tune would save its state every ten seconds; the runs' state is in their directories.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UserError("launcher ray: Ray is not installed; pip install 'densevit[ray]'") from None


def address(plan: Plan) -> str:
    """Return `local`, `auto` or HOST:PORT: the sweep's, else $RAY_ADDRESS, else `local`.

    Errors: `UserError` if $RAY_ADDRESS is none of these.
    """
    given = os.environ.get("RAY_ADDRESS")
    if plan.spec.ray.address or not given:
        return plan.spec.ray.address or "local"
    try:
        check_address(given)
    except ValueError as error:
        raise UserError(f"$RAY_ADDRESS: {given!r} {error}") from None
    return given


@contextmanager
def connected(plan: Plan, runs: Sequence[Run]) -> Iterator[None]:
    """Connect to Ray during the block.

    Errors: `UserError` for a cluster that does not answer, or that cannot take one of `runs`.
    """
    where = address(plan)
    if where == "local":
        # Our own Ray then uses 127.0.0.1 and does not listen on all addresses.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    _import_ray(where)
    import ray

    # A run's errors are in its status and log; Ray's tracebacks would only repeat them.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if where == "local":
        cpus = len(os.sched_getaffinity(0))  # Ray would count all CPUs of the machine
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
                 logging_level=logging.CRITICAL)  # fmt: skip
    else:
        _join(plan, where)
    try:
        _check_needs(plan, runs)
        yield
    finally:
        ray.shutdown()


def _join(plan: Plan, where: str) -> None:
    """Join a cluster. Errors: `UserError` if it is not there or requires another token."""
    import ray

    named = plan.spec.ray.address is not None
    source = f"{plan.spec.file}: ray.address" if named else "$RAY_ADDRESS"
    start = "`ray start --head` starts one, and `address: local` needs none"
    if where != "auto":
        host, _, port = where.rpartition(":")
        # As Ray does, which then waits forever if nothing listens there.
        if host in ("localhost", "127.0.0.1"):
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # it has no hints
        try:
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(
                f"{source}: {where}: no Ray answers at {host}:{port} ({error}); {start}"
            ) from None
    variables = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    variables["PYTHONPATH"] = code_path()  # the code of this command, not an installed one
    try:
        ray.init(where, runtime_env={"env_vars": variables}, log_to_driver=False,
                 logging_level=logging.CRITICAL)  # fmt: skip
    except Exception as error:  # a different type for each cause: no cluster, no token, a version
        raise UserError(f"{source}: {where}: {reason_of(error, 300)}; {start}") from None


def _has_token() -> bool:
    """Return whether this user has a token. Errors: `UserError` if others can read it, too."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return True
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if file.exists() and file.stat().st_mode & 0o077:
        raise UserError(
            f"{file}: other users can read this token, and with it run programs as you; restart "
            f"your Ray cluster after: rm {file}; (umask 077; ray get-auth-token --generate)"
        )
    return file.exists()


def processes(plan: Plan, run: Run) -> int:
    """Return how many processes train the run: one per GPU, or one per node without GPUs."""
    return int(run.resources.get("nodes") or 1) * max(1, int(_per_node(plan, run)[0]))


def needs(plan: Plan, run: Run) -> Needs:
    """Return the resources of each process of a run.

    `ray` overrides the sweep's `resources`; a `when` exception of these overrides `ray`.
    """
    gpus, cpus = _per_node(plan, run)
    if processes(plan, run) > 1:
        return {"CPU": cpus / max(1, int(gpus)), "GPU": 1.0 if gpus else 0.0}
    return {"CPU": cpus, "GPU": gpus}


def _per_node(plan: Plan, run: Run) -> tuple[float, float]:
    """Return the GPUs and CPUs of a run on each of its nodes."""
    settings, request = plan.spec.ray, run.resources
    share = request.get("pack") or 1

    def nearest(name: str, own: float | None, default: float) -> float:
        if own is not None and run.nearer.isdisjoint({name, "pack"}):
            return own
        return (request.get(name) or 0) / share or default

    return nearest("gpus", settings.gpus_per_run, 0), nearest("cpus", settings.cpus_per_run, 1)


def runs_at_once(plan: Plan, runs: Sequence[Run]) -> int | None:
    """Return how many runs to start at once, None to leave it to Tune; Tune cannot count the
    processes of a run, which Ray Train requests after the trial has started."""
    large = [run for run in runs if processes(plan, run) > 1]
    if plan.spec.ray.max_concurrent is not None or not large:
        return plan.spec.ray.max_concurrent
    smallest = min(large, key=lambda run: processes(plan, run))
    free, count = _nodes(), 0
    while _fits(plan, smallest, free):
        count += 1
    return max(1, count)


def _check_needs(plan: Plan, runs: Sequence[Run]) -> None:
    """Check that each run fits into the empty cluster. Errors: `UserError` if one does not."""
    nodes = _nodes()
    for run in runs:
        if not _fits(plan, run, [dict(node) for node in nodes]):
            count = processes(plan, run)
            request = f"{count} x " if count > 1 else ""
            raise UserError(
                f"{plan.spec.file}: {plan.label(run)}: needs {request}{_text(needs(plan, run))}, "
                f"and the Ray cluster has {'; '.join(_text(node) for node in nodes)}"
            )


def _nodes() -> list[Needs]:
    """Return the CPUs and GPUs of each living node of the cluster."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # it has no hints
    found = [node["Resources"] for node in nodes if node["Alive"]]
    return [{name: node.get(name, 0.0) for name in ("CPU", "GPU")} for node in found]


def _fits(plan: Plan, run: Run, free: list[Needs]) -> bool:
    """Return whether all processes of a run fit into `free`, and take their resources from it."""
    return all(_take(free, needs(plan, run)) for _ in range(processes(plan, run)))


def _take(free: list[Needs], request: Needs) -> bool:
    for node in free:
        if all(node[name] >= value - 1e-9 for name, value in request.items()):
            for name, value in request.items():
                node[name] -= value
            return True
    return False


def _text(resources: Needs) -> str:
    return " and ".join(f"{value:g} {name}s" for name, value in resources.items())
