"""The Ray that runs a sweep: one of our own on this machine, or one that is there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densevit.errors import UserError
from densevit.sweep.grid import Run
from densevit.sweep.launch.warm import code_path
from densevit.sweep.plan import Plan

ANSWER_SECONDS = 5.0
# What a run's process must find on another machine as it is here.
_FORWARDED = ("DENSEVIT_DATA", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME")
# Of which a run needs so much, by the name that Ray has for it.
Needs = dict[str, float]


def _import_ray() -> None:
    """Errors: `UserError` where Ray is not installed."""
    # Before the import, which reads them. The second lets a Ray of our own talk to itself on
    # 127.0.0.1, where it otherwise listens on all addresses; one that is started by `ray start`
    # decides for itself.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose banner no verbosity silences
    # A cluster asks for its token unless told otherwise, but who joins it shows it only if told to.
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    # What ends a run is a result without the metric.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # Tune would keep its own state every ten seconds; that of runs is in their directories.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UserError("launcher ray: Ray is not installed; pip install 'densevit[ray]'") from None


def address(plan: Plan) -> str:
    """`local`, `auto` or HOST:PORT: by the sweep, else by $RAY_ADDRESS, else `local`."""
    return plan.spec.ray.address or os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def connected(plan: Plan, runs: Sequence[Run]) -> Iterator[None]:
    """Ray, for the time of the block.

    Errors: `UserError` for a cluster that does not answer, or that cannot take one of `runs`.
    """
    where = address(plan)
    if where == "local":
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    _import_ray()
    import ray

    # What goes wrong with a run is told by its status and log, not by tracebacks of Ray's.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    common = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if where == "local":
        cpus = len(os.sched_getaffinity(0))  # Ray counts those of the machine
        ray.init("local", num_cpus=cpus, include_dashboard=False, **common)
    else:
        _join(plan, where, common)
    try:
        _check_needs(plan, runs)
        yield
    finally:
        ray.shutdown()


def _join(plan: Plan, where: str, common: dict[str, Any]) -> None:
    """Errors: `UserError` for a cluster that is not there, or takes nobody without its token."""
    import ray

    named = plan.spec.ray.address is not None
    source = f"{plan.spec.file}: ray.address" if named else "$RAY_ADDRESS"
    start = "`ray start --head` starts one, and `address: local` needs none"
    if where != "auto":
        host, _, port = where.rpartition(":")
        # Which Ray does as well, and then waits for ever if nobody listens there.
        taken = ray.util.get_node_ip_address() if host in ("localhost", "127.0.0.1") else host
        try:
            socket.create_connection((taken, int(port)), ANSWER_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            told = f"no Ray answers at {taken}:{port} ({error}); {start}"
            raise UserError(f"{source}: {where}: {told}") from None
    variables = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    variables["PYTHONPATH"] = code_path()  # the code of this command, and not what is installed
    try:
        ray.init(where, runtime_env={"env_vars": variables}, **common)
    except Exception as error:  # of its own kind for each cause: none there, no token, a version
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{source}: {where}: {told}; {start}") from None


def _has_token() -> bool:
    if "RAY_AUTH_TOKEN" in os.environ:
        return True
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser().exists()


def processes(plan: Plan, run: Run) -> int:
    """How many processes train the run: one a GPU, one a node without."""
    return int(run.resources.get("nodes") or 1) * max(1, int(_asked(plan, run)[0]))


def needs(plan: Plan, run: Run) -> Needs:
    """What each process of a run needs.

    `ray` is nearer than the sweep's `resources`, an exception of these (`when`) nearer than `ray`.
    """
    gpus, cpus = _asked(plan, run)
    if processes(plan, run) > 1:
        return {"CPU": cpus / max(1, int(gpus)), "GPU": 1.0 if gpus else 0.0}
    return {"CPU": cpus, "GPU": gpus}


def _asked(plan: Plan, run: Run) -> tuple[float, float]:
    """GPUs and processors of a run, on each of its nodes."""
    settings, wanted = plan.spec.ray, run.resources
    share = wanted.get("pack") or 1

    def nearest(name: str, own: float | None, default: float) -> float:
        if own is not None and run.nearer.isdisjoint({name, "pack"}):
            return own
        return (wanted.get(name) or 0) / share or default

    return nearest("gpus", settings.gpus_per_run, 0), nearest("cpus", settings.cpus_per_run, 1)


def room_for_gangs(plan: Plan, runs: Sequence[Run]) -> int | None:
    """How many runs to begin at once, if some are of several processes: Ray Train asks for these
    when it has begun already. None where Tune can see by itself what there is room for."""
    import ray

    gangs = [run for run in runs if processes(plan, run) > 1]
    if plan.spec.ray.max_concurrent is not None or not gangs:
        return plan.spec.ray.max_concurrent
    least = min(gangs, key=lambda run: processes(plan, run))
    wanted = needs(plan, least)
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    free = [{name: node.get(name, 0.0) for name in wanted} for node in nodes]
    count = 0
    while all(_place(free, wanted) for _ in range(processes(plan, least))):
        count += 1
    return max(1, count)


def _check_needs(plan: Plan, runs: Sequence[Run]) -> None:
    """Errors: `UserError` for a run that the cluster, were it empty, could not take."""
    import ray

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for run in runs:
        wanted = needs(plan, run)
        free = [{name: node.get(name, 0.0) for name in wanted} for node in nodes]
        count = processes(plan, run)
        if not all(_place(free, wanted) for _ in range(count)):
            asked = f"{count} x " if count > 1 else ""
            raise UserError(
                f"{plan.spec.file}: {plan.label(run)}: needs {asked}{_words(wanted)}, and the Ray "
                f"cluster has {'; '.join(_words(_kept(node)) for node in nodes)}"
            )


def _place(free: list[dict[str, float]], wanted: Mapping[str, float]) -> bool:
    for node in free:
        if all(node[name] >= value - 1e-9 for name, value in wanted.items()):
            for name, value in wanted.items():
                node[name] -= value
            return True
    return False


def _kept(node: Mapping[str, float]) -> dict[str, float]:
    return {name: node.get(name, 0.0) for name in ("CPU", "GPU")}


def _words(found: Mapping[str, float]) -> str:
    return " and ".join(f"{value:g} {name}s" for name, value in found.items())
