"""Whether a store has all there is of runs and sweeps, as small files tell it.

A run that was sent to its end is not sent again as long as the store has it still: of a sweep of
thousands, nearly all are such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from densevit.errors import UserError
from densevit.passwords import without_password
from densevit.rundir import RunFolder, run_folder
from densevit.tracking import sent, shown
from densevit.tracking.child import FINAL
from densevit.tracking.parent import sweep_state
from densevit.tracking.quick import Standing, living_runs
from densevit.tracking.shown import Shelf
from densevit.tracking.store import database_file, store_uri


def up_to_date(
    outputs: Path,
    run_ids: Iterable[str],
    sweep: str | None = None,
    living: Mapping[str, Standing] | None = None,
    again: bool = False,
) -> bool:
    """Whether the store holds all there is of the runs and the sweep.

    `living` is what the store says of its runs, if it was asked: it may have been emptied, or put
    back as it was before. A network that could not be exported shall be tried `again`, or not.
    False while a run works. A run that was not begun has nothing to send.
    """
    uri = store_uri(outputs)
    database = database_file(uri)
    if database is not None and not database.exists():
        return False
    store, ids = without_password(uri), list(run_ids)
    folders = (run_folder(outputs, run_id) for run_id in ids)
    begun = [folder for folder in folders if folder.provenance_file.exists()]
    shelf = None if sweep is None else shown.read_shelf(outputs, sweep)
    if not all(is_sent(folder, store, shelf, living, again) for folder in begun):
        return False
    return shelf is None or not begun or _sent_sweep(outputs, shelf, store, ids, living)


def is_sent(
    folder: RunFolder,
    store: str,
    shelf: Shelf | None,
    living: Mapping[str, Standing] | None = None,
    again: bool = False,
) -> bool:
    """Whether a run has ended and was sent to its end, as one of the sweep."""
    held, settled = sent.remembered(folder, store), ("logged",) if again else ("logged", "refused")
    try:
        state = folder.seen().state
        files = sent.file_stamps(folder, state, shelf)
        size = folder.metrics_file.stat().st_size if folder.metrics_file.exists() else 0
        return (
            state in FINAL
            and (held.get("state"), held.get("offset")) == (state, size)
            and (shelf is None or held["sweeps"].get(shelf.name) == shown.place(folder, shelf))
            and all(held["files"].get(name) == stamp for name, (_, stamp) in files.items())
            and (state != "finished" or not held["wants_model"] or held["model"] in settled)
            and (living is None or living.get(held["mlflow_run_id"]) == _standing(held))
        )
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def _sent_sweep(
    outputs: Path,
    shelf: Shelf,
    store: str,
    run_ids: Sequence[str],
    living: Mapping[str, Standing] | None,
) -> bool:
    held = sent.remembered_parent(shelf, store)
    if living is not None:
        found = living.get(held.get("mlflow_run_id", ""))
        if found is None or found.status != held.get("status"):
            return False
    state, _ = sweep_state(outputs, shelf, run_ids)
    return (held.get("status"), held.get("files")) == (state, sent.parent_files(shelf))


def asked_living(outputs: Path, run_ids: Iterable[str]) -> Mapping[str, Standing] | None:
    """What the store says of its runs, as far as it is remembered in which experiments some are;
    None where it cannot be told."""
    uri = store_uri(outputs)
    store = without_password(uri)
    held = (sent.remembered(run_folder(outputs, run_id), store) for run_id in run_ids)
    return living_runs(uri, {one["experiment_id"] for one in held if "experiment_id" in one})


def _standing(held: Mapping[str, Any]) -> Standing:
    """A run as the store has it, if it has what was sent."""
    return Standing(held["status"], held["last_steps"])


def is_shown_running(folder: RunFolder, store: str) -> bool:
    """Whether the store was told that a run works, which it does not."""
    held = sent.remembered(folder, store)
    try:
        return held.get("state") == "running" and folder.seen().state in FINAL
    except UserError:
        return False


def sweep_is_shown_running(outputs: Path, sweep: str, store: str, run_ids: Sequence[str]) -> bool:
    """The same of a sweep."""
    shelf = shown.read_shelf(outputs, sweep)
    if sent.remembered_parent(shelf, store).get("status") != "RUNNING":
        return False
    return sweep_state(outputs, shelf, run_ids)[0] != "RUNNING"
