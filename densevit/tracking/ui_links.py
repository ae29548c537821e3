"""Links to a sweep's pages in MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from densevit.runs.directory import sweep_folder
from densevit.tracking.store import all_pages, open_store, opened
from densevit.tracking.store_uri import database_file
from densevit.utils.console import say
from densevit.utils.errors import Unreachable, UserError, nearest, reason_of
from densevit.utils.redact import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


COMPARED = 200  # runs; the URL lists each of them, and a browser has to draw them
METRIC = "val/top1"  # sorts the runs, and is drawn as curves

# MLflow would open its pages for language models, which show none of these runs.
_TRAINING = {"workflowType": "machine_learning"}


@dataclass(frozen=True)
class _Sweep:
    """A sweep in a store: the number of its runs, and the first of them by start.

    `filter` is the MLflow search filter that finds them.
    """

    name: str
    count: int
    runs: tuple[str, ...]
    experiments: tuple[str, ...]
    filter: str


def find_sweeps(uri: str, outputs: Path, name: str | None) -> tuple[dict[str, str], list[_Sweep]]:
    """Return the experiments with runs of this package, name to id; and the sweep, or all sweeps.

    Errors: `UserError` for a sweep that is not there; `Unreachable`.
    """
    # Not only `MlflowException`: database drivers and requests have their own exceptions.
    try:
        client = _client(uri, outputs)
        experiments = {
            each.experiment_id: each.name for each in all_pages(client.search_experiments)
        }
        names = _sweep_names(client, list(experiments))
        chosen = names if name is None else [n for n in names if n == name]
        sweeps = [_sweep(client, list(experiments), each) for each in chosen]
        own = {each for sweep in sweeps for each in sweep.experiments}
        if name is None:
            own |= {each for each in experiments if _has_runs(client, each)}
    except Exception as error:
        reason = reason_of(error, 300)
        text = f"MLflow at {without_password(uri)}: {type(error).__name__}: {reason}"
        raise (UserError if database_file(uri) else Unreachable)(text) from None
    if name is not None and not sweeps:
        raise UserError(_unknown(name, names, outputs, uri))
    return {experiments[each]: each for each in experiments if each in own}, sweeps


def _client(uri: str, outputs: Path) -> MlflowClient:
    """Return a client of a store whose tables exist: a mirror may be creating them just now."""
    try:
        with opened(uri, outputs) as client:
            client.search_experiments(max_results=1)
    except PermissionError:  # another user's outputs, where no lock can be created
        client = open_store(uri)
    return client


def _unknown(name: str, names: Sequence[str], outputs: Path, uri: str) -> str:
    where = database_file(uri) or without_password(uri)
    if sweep_folder(outputs, name).is_dir():
        return f"{name}: has no runs in {where} yet; run it, or densevit sync"
    return f"{name}: no such sweep in {where}; {nearest(name, names)}"


def _sweep_names(client: MlflowClient, experiments: list[str]) -> list[str]:
    """Return the sweeps with a parent run, the newest first."""
    found = all_pages(
        client.search_runs, experiments, "tags.`densevit.sweep` LIKE '%'",
        order_by=["attributes.start_time DESC"],
    )  # fmt: skip
    return list(dict.fromkeys(run.data.tags["densevit.sweep"] for run in found))


def _has_runs(client: MlflowClient, experiment: str) -> bool:
    return bool(client.search_runs([experiment], "tags.`densevit.run` LIKE '%'", max_results=1))


def _sweep(client: MlflowClient, experiments: list[str], name: str) -> _Sweep:
    query = f"tags.`densevit.sweeps` LIKE '%{name}%'"
    order = ["attributes.start_time ASC"]
    found: list[MlflowRun] = list(all_pages(client.search_runs, experiments, query, order_by=order))
    runs = [run for run in found if name in run.data.tags["densevit.sweeps"].split(",")]
    ids = tuple(run.info.run_id for run in runs)
    if len(runs) < len(found):  # sweeps with a longer name were found too
        query = f"attributes.run_id IN ({', '.join(map(repr, ids[:COMPARED]))})"
    own = tuple(dict.fromkeys(run.info.experiment_id for run in runs))
    return _Sweep(name, len(runs), ids[:COMPARED], own, query)


def print_links(
    base: str, experiments: dict[str, str], sweeps: list[_Sweep], key: str = ""
) -> None:
    """Print the addresses of pages of a server; with `key`, the secret that opens them."""
    base = f"{base}/?key={key}" if key else f"{base}/"
    if not experiments:
        say(f"{'MLflow':<10} {base}")
    for name, number in experiments.items():
        table = _address(base, f"experiments/{number}/runs", {})
        say(f"{'runs':<10} {table}  ({name})")
    for sweep in sweeps:
        _print_sweep(base, sweep)


def _print_sweep(base: str, sweep: _Sweep) -> None:
    text = f"{sweep.count} run{'' if sweep.count == 1 else 's'}"
    if sweep.count > len(sweep.runs):
        text += f"; the first {len(sweep.runs)} are compared"
    say(f"{sweep.name}: {text}")
    for number in sweep.experiments:
        best = {
            "searchFilter": sweep.filter, "orderByKey": f"metrics.`{METRIC}`",
            "orderByAsc": "false",
        }  # fmt: skip
        say(f"{'  best':<10} {_address(base, f'experiments/{number}/runs', best)}")
    if sweep.runs:
        which = {"runs": _json(sweep.runs), "experiments": _json(sweep.experiments)}
        curve = {"metric": _json(METRIC), "plot_metric_keys": _json([METRIC]), "x_axis": "step"}
        say(f"{'  compare':<10} {_address(base, 'compare-runs', which)}")
        say(f"{'  curves':<10} {_address(base, 'metric', which | curve)}")


def _address(base: str, page: str, query: dict[str, str]) -> str:
    return f"{base}#/{page}?{urlencode(query | _TRAINING, quote_via=quote, safe='')}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
