"""The command `densevit sync`: MLflow has what the run directories have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from densevit.commandline import add_outputs, add_tracking_uri, heed_tracking_uri
from densevit.errors import EXIT_FAILED, Unreachable, UserError, nearest
from densevit.passwords import without_password
from densevit.rundir import outputs_root, read_json


def add_sync(commands: Any) -> None:
    sync = commands.add_parser(
        "sync",
        help="send to MLflow what it has not got yet",
        description="Send to MLflow what it has not got of the runs in the outputs folder, each "
        "step once. Named ones are also brought back if they were deleted in MLflow.",
    )
    sync.set_defaults(call=_sync)
    sync.add_argument(
        "names", metavar="NAME", nargs="*", help="sweeps (names or files) or ids of runs; else all"
    )
    add_outputs(sync)
    add_tracking_uri(sync)


class _Group(NamedTuple):
    """Runs that are sent together: of a sweep, or of none."""

    sweep: str | None
    run_ids: Sequence[str]

    def __str__(self) -> str:
        return self.sweep or "runs of no sweep"

    @property
    def counted(self) -> str:
        return f"{len(self.run_ids)} run{'' if len(self.run_ids) == 1 else 's'}"


def _sync(options: argparse.Namespace) -> int:
    from densevit.tracking.complete import asked_living, up_to_date
    from densevit.tracking.store import require_usable, store_uri

    heed_tracking_uri(options.tracking_uri)
    outputs = outputs_root(options.outputs)
    uri = store_uri(outputs)
    require_usable(uri)
    groups = list(_groups(outputs, options.names))
    if not groups:
        raise UserError(f"{outputs}: has no runs; --outputs names another folder")
    living = asked_living(outputs, {run_id for group in groups for run_id in group.run_ids})
    failed = False
    for group in groups:
        if living is not None and up_to_date(
            outputs, group.run_ids, group.sweep, living, again=bool(options.names)
        ):
            print(f"{group}: up to date ({group.counted})", flush=True)
        else:
            failed = not _send(outputs, uri, group, bool(options.names)) or failed
    return EXIT_FAILED if failed else 0


def _send(outputs: Path, uri: str, group: _Group, restore: bool) -> bool:
    """Send a group; whether all of it is there now."""
    from densevit.tracking.beside import mirror_once

    print(f"{group}: sending {group.counted}", flush=True)
    problems, notes = mirror_once(outputs, group.run_ids, group.sweep, restore=restore)
    for line in [*notes, *problems]:
        print(f"warning: {line}", file=sys.stderr)
    of_store = [
        line for line in problems if line.startswith(f"MLflow at {without_password(uri)}: ")
    ]
    if any("does not answer" in line for line in of_store):
        raise Unreachable("not everything was sent; the same command sends the rest")
    if of_store:
        raise UserError("nothing more can be sent there")
    return not problems


def _groups(outputs: Path, names: Sequence[str]) -> Iterator[_Group]:
    """What is to be sent: the sweeps and runs of these names, or all there are."""
    sweeps = dict(_sweeps(outputs))
    runs = sorted((outputs / "runs").glob("*"))
    begun = {folder.name: None for folder in runs if folder.is_dir()}
    if not names:
        for name, ids in sweeps.items():
            if held := [run for run in ids if run in begun]:
                yield _Group(name, held)
        known = {run for ids in sweeps.values() for run in ids}
        if alone := [run for run in begun if run not in known]:
            yield _Group(None, alone)
        return
    for name in dict.fromkeys(map(_plain, names)):
        if name in sweeps:
            yield _Group(name, [run for run in sweeps[name] if run in begun])
        elif name in begun:
            home = next((sweep for sweep, ids in sweeps.items() if name in ids), None)
            yield _Group(home, [name])
        else:
            raise UserError(
                f"{name}: no such sweep or run in {outputs}; {nearest(name, [*sweeps, *begun])}"
            )


def _sweeps(outputs: Path) -> Iterator[tuple[str, list[str]]]:
    """Each sweep of an outputs folder, with the ids of its runs."""
    for folder in sorted((outputs / "sweeps").glob("*")):
        try:
            record = read_json(folder / "plan.json")
            if record is not None:
                yield folder.name, [run["id"] for run in record["runs"]]
        except (UserError, KeyError, TypeError) as error:
            print(f"warning: {folder}: its plan cannot be read: {error!r}", file=sys.stderr)


def _plain(name: str) -> str:
    """The name of a sweep whose file is given."""
    if not name.endswith((".yaml", ".yml")):
        return name
    from densevit.sweep.spec import read_spec

    return read_spec(Path(name)).name
