"""`densevit sync`: bring MLflow up to date with the run directories."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from densevit.cli.parser import (
    Commands,
    add_outputs,
    add_tracking_uri,
    set_tracking_uri,
    sweep_name,
)
from densevit.runs.directory import outputs_root
from densevit.utils.console import say, warn
from densevit.utils.errors import EXIT_FAILED, Unreachable, UserError, nearest
from densevit.utils.files import read_json
from densevit.utils.redact import without_password


def add_sync(commands: Commands) -> None:
    sync = commands.add_parser(
        "sync",
        help="send to MLflow what is missing there",
        description="Send to MLflow what is missing there of the runs in the outputs folder, each "
        "step once. Runs that are named are also restored if they were deleted in MLflow.",
    )
    sync.set_defaults(call=_sync)
    sync.add_argument(
        "names", metavar="NAME", nargs="*", help="sweeps (names or files) or run ids (default: all)"
    )
    add_outputs(sync)
    add_tracking_uri(sync)


class _Group(NamedTuple):
    """Runs that are sent together: those of one sweep, or those of no sweep."""

    sweep: str | None
    run_ids: Sequence[str]

    def __str__(self) -> str:
        return self.sweep or "runs of no sweep"

    @property
    def size(self) -> str:
        return f"{len(self.run_ids)} run{'' if len(self.run_ids) == 1 else 's'}"


def _sync(options: argparse.Namespace) -> int:
    from densevit.tracking.store_uri import require_usable, store_uri

    set_tracking_uri(options.tracking_uri)
    outputs = outputs_root(options.outputs)
    uri = store_uri(outputs)
    require_usable(uri)
    groups = list(_groups(outputs, options.names))
    if not groups:
        raise UserError(f"{outputs}: has no runs; --outputs names another folder")
    sent = [_send(outputs, uri, group, restore=bool(options.names)) for group in groups]
    return 0 if all(sent) else EXIT_FAILED


def _send(outputs: Path, uri: str, group: _Group, *, restore: bool) -> bool:
    """Send to MLflow what it lacks of a group. Return True if it lacks nothing any more."""
    from densevit.tracking.mirror_process import mirror_once
    from densevit.tracking.up_to_date import up_to_date

    # By what was recorded; the mirror asks the store, which may have been emptied or deleted since.
    recorded = up_to_date(outputs, group.run_ids, group.sweep, retry_models=restore)
    if not recorded:
        say(f"{group}: sending {group.size}")
    problems, notes = mirror_once(outputs, group.run_ids, group.sweep, restore=restore)
    for line in [*notes, *problems]:
        warn(f"warning: {line}")
    of_store = [line for line in problems if line.startswith(f"MLflow at {without_password(uri)}:")]
    if any("does not answer" in line for line in of_store):
        raise Unreachable("not everything was sent; the same command sends the rest")
    if of_store:
        raise UserError("nothing more can be sent there")
    if recorded and not problems and not notes:
        say(f"{group}: up to date ({group.size})")
    return not problems


def _groups(outputs: Path, names: Sequence[str]) -> Iterator[_Group]:
    """Yield the groups to send: the sweeps and runs of `names`, or all if `names` is empty."""
    sweeps = dict(_sweeps(outputs))
    runs = sorted((outputs / "runs").glob("*"))
    started = {folder.name: None for folder in runs if folder.is_dir()}
    if not names:
        for name, ids in sweeps.items():
            if in_sweep := [run for run in ids if run in started]:
                yield _Group(name, in_sweep)
        known = {run for ids in sweeps.values() for run in ids}
        if others := [run for run in started if run not in known]:
            yield _Group(None, others)
        return
    for name in dict.fromkeys(map(sweep_name, names)):
        if name in sweeps:
            yield _Group(name, [run for run in sweeps[name] if run in started])
        elif name in started:
            sweep = next((sweep for sweep, ids in sweeps.items() if name in ids), None)
            yield _Group(sweep, [name])
        else:
            raise UserError(
                f"{name}: no such sweep or run in {outputs}; {nearest(name, [*sweeps, *started])}"
            )


def _sweeps(outputs: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each sweep of an outputs folder with the ids of its runs."""
    for folder in sorted((outputs / "sweeps").glob("*")):
        try:
            record = read_json(folder / "plan.json")
            if record is not None:
                yield folder.name, [run["id"] for run in record["runs"]]
        except (UserError, KeyError, TypeError) as error:
            warn(f"warning: {folder}: its plan cannot be read: {error!r}")
