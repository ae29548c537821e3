"""Numbers that were written down, as for a paper, and what has moved since and why.

A frozen file holds the numbers of every cell and, of every run, hashes of its results: so it can be
said which run has made a number move. A hash over the file itself shows that nobody has edited it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from densevit.config import NAME_PATTERN
from densevit.errors import UserError, nearest
from densevit.results.collect import coverage
from densevit.results.sheet import NOT_APPLICABLE, Sheet
from densevit.results.tables import METRICS, spread_text
from densevit.rundir import read_json, write_json
from densevit.sweep.plan import Plan

FORMAT = 1
LONGEST = 100  # letters of a name
SAME = 1e-9  # relative: sums in another order differ by less
SHA = 10  # letters of a commit that are told
Place = tuple[str, str, str]  # cell, benchmark, metric


class Number(NamedTuple):
    """A cell's number; NaN where it is none, as the std of one seed."""

    mean: float
    std: float
    n: int


class Move(NamedTuple):
    """A number that is another one now; `was` or `now` is None where there is none."""

    cell: str
    label: str
    benchmark: str
    metric: str
    was: Number | None
    now: Number | None
    because: str


class Moved(NamedTuple):
    """`lines` tell what happened to runs, one a line, and whether numbers moved. `moves` are all
    that did; `sheet` shows those of the usual metrics, None if there are none."""

    name: str
    frozen: str
    lines: list[str]
    moves: list[Move]
    sheet: Sheet | None


def freeze(plan: Plan, frame: pd.DataFrame, name: str) -> Path:
    """Write the numbers of a sweep down in `plan.folder`/frozen/<name>.json, and return the file.

    It holds mean, std and n of each cell, benchmark and metric; of each run its id, cell, seed, the
    commit of its code and a hash of its numbers on each benchmark; the date; and a SHA-256 over
    all of that. Errors: `UserError` for a name that is none or is taken, and when there is nothing.
    """
    file = _file(plan, name)
    if file.exists():
        raise UserError(f"--freeze {name}: {file} is there already; choose another name")
    if frame.empty:
        raise UserError(f"--freeze {name}: no run of {plan.name} has results yet")
    labels = {run.cell: plan.label(run) for run in plan.grid.cells}
    record = {
        "format": FORMAT,
        "sweep": plan.name,
        "name": name,
        "frozen": datetime.now(UTC).isoformat(timespec="seconds"),
        "numbers": [
            {
                "cell": cell, "label": labels.get(cell, cell), "benchmark": benchmark,
                "metric": metric, "mean": _given(number.mean), "std": _given(number.std),
                "n": number.n,
            }
            for (cell, benchmark, metric), number in _numbers(frame).items()
        ],
        "runs": {
            run: {"cell": cell, "seed": seed, "git_sha": _commit(plan, run), "hashes": hashes}
            for run, (cell, seed, hashes) in _runs(frame).items()
        },
    }  # fmt: skip
    write_json(file, record | {"sha256": _hash(record)})
    return file


def frozen(plan: Plan) -> list[str]:
    """The names under which numbers of the sweep were written down, the oldest first."""
    files = (plan.folder / "frozen").glob("*.json")
    return [file.stem for file in sorted(files, key=lambda f: (f.stat().st_mtime, f.name))]


def moved(plan: Plan, frame: pd.DataFrame, name: str) -> Moved:
    """Which numbers are not what they were when they were frozen as `name`, and which runs why.

    Errors: `UserError` if there is no such file, or it is damaged or was edited.
    """
    record = read(plan, name)
    runs = _runs(frame)
    told = _told(plan, record["runs"], runs)
    old = {_place(row): _number(row) for row in record["numbers"]}
    labels = {row["cell"]: row["label"] for row in record["numbers"]}
    labels |= {run.cell: plan.label(run) for run in plan.grid.cells}
    new = _numbers(frame)
    moves = [
        Move(place[0], labels[place[0]], *place[1:], old.get(place), new.get(place),
             _because(place, told))
        for place in dict.fromkeys([*new, *old])
        if not _same(old.get(place), new.get(place))
    ]  # fmt: skip
    lines = [event.text for event in told]
    lines.append(
        f"{len(moves)} of {len(old.keys() | new.keys())} numbers moved"
        if moves
        else f"No number has moved since {record['frozen']}"
    )
    return Moved(name, record["frozen"], lines, moves, _sheet(name, record["frozen"], moves))


def read(plan: Plan, name: str) -> dict[str, Any]:
    """What was frozen under a name, checked against its hash. Errors: as `moved`."""
    file = _file(plan, name)
    record = read_json(file)
    if record is None:
        raise UserError(f"{file}: no such file; {nearest(name, frozen(plan))}")
    held = dict(record) if isinstance(record, dict) else {}
    if held.pop("sha256", None) != _hash(held):
        raise UserError(f"{file}: is not as it was written: its sha256 is another one")
    if held.get("format") != FORMAT:
        raise UserError(f"{file}: has format {held.get('format')}; this version reads {FORMAT}")
    if not {"numbers", "runs", "frozen"} <= held.keys():
        raise UserError(f"{file}: lacks numbers, runs or frozen")
    return held


class _Event(NamedTuple):
    """Something that happened to a run, in a few words and in a line; None: all benchmarks."""

    cell: str
    benchmarks: frozenset[str] | None
    short: str
    text: str


def _told(
    plan: Plan, old: Mapping[str, Any], new: Mapping[str, tuple[str, int, dict[str, str]]]
) -> list[_Event]:
    labels = {run.id: plan.label(run) for run in plan.runs}
    lacking = old.keys() - new.keys()
    covered = coverage(plan).set_index("run").to_dict("index") if lacking else {}
    events = []
    for run in dict.fromkeys([*old, *new]):
        cell, seed = (old[run]["cell"], old[run]["seed"]) if run in old else new[run][:2]
        where = f"{run} ({labels[run]}, seed {seed})" if run in labels else f"{run} (seed {seed})"
        if run not in new:
            short, more = _missing(run, covered)
            events.append(_Event(cell, None, f"{run} {short}", f"{where} {short}{more}"))
        elif run not in old:
            events.append(_Event(cell, None, f"{run} added", f"{where} was added"))
        else:
            events += _changed(plan, run, where, old[run], new[run][2])
    return events


def _missing(run: str, covered: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Why a run that had results has none now: in a few words, and the rest."""
    if run not in covered:
        return "is no part of the sweep any more", ""
    state, message = covered[run]["state"], covered[run]["message"]
    told = "has no readable results" if state == "finished" else f"is {state} now"
    return told, f": {message}" if message else ""


def _changed(
    plan: Plan, run: str, where: str, old: Mapping[str, Any], hashes: Mapping[str, str]
) -> list[_Event]:
    before = old["hashes"]
    groups = {
        "changed": [b for b in before if b in hashes and before[b] != hashes[b]],
        "added": [b for b in hashes if b not in before],
        "gone": [b for b in before if b not in hashes],
    }
    commit = _commit(plan, run)
    told = "" if commit == old["git_sha"] else f" (code {_sha(old['git_sha'])}, now {_sha(commit)})"
    return [
        _Event(old["cell"], frozenset(names), f"{run} {word}",
               f"{where}: results {word} on {', '.join(names)}{told}")
        for word, names in groups.items()
        if names
    ]  # fmt: skip


def _because(place: Place, events: Sequence[_Event]) -> str:
    cell, benchmark, _ = place
    fitting = [
        e.short
        for e in events
        if e.cell == cell and (e.benchmarks is None or benchmark in e.benchmarks)
    ]
    return ", ".join(fitting)


def _sheet(name: str, when: str, moves: Sequence[Move]) -> Sheet | None:
    shown = [move for move in moves if move.metric in METRICS]
    if not shown:
        return None
    rows = [
        [m.label, m.benchmark, m.metric, m.because, _word(m.was, m.metric), _word(m.now, m.metric)]
        for m in shown
    ]
    left = sorted({move.metric for move in moves} - {move.metric for move in shown})
    return Sheet(
        f"Moved since {name} ({when})",
        ["cell", "benchmark", "metric", "because", "was", "now"],
        rows,
        f"Moved, too: {', '.join(left)}." if left else "",
        4,
    )


def _word(number: Number | None, metric: str) -> str:
    if number is None:
        return NOT_APPLICABLE
    return f"{spread_text(*number, metric)} (n={number.n})"


def _numbers(frame: pd.DataFrame) -> dict[Place, Number]:
    groups = frame.groupby(["cell", "benchmark", "metric"], sort=False)["value"]
    table = groups.agg(["mean", "std", "size", "count"])
    table.loc[table["size"] != table["count"], ["mean", "std"]] = math.nan
    return {
        key: Number(float(mean), float(std), int(size))
        for key, mean, std, size, _ in table.itertuples(name=None)
    }


def _runs(frame: pd.DataFrame) -> dict[str, tuple[str, int, dict[str, str]]]:
    """Run to its cell, seed and, by benchmark, the hash of its numbers and number of pictures."""
    held: dict[tuple[str, str, int, str], list[list[Any]]] = {}
    columns = [frame[name] for name in ("run", "cell", "seed", "benchmark", "metric", "value", "n")]
    for run, cell, seed, benchmark, metric, value, n in zip(*columns, strict=True):
        numbers = held.setdefault((run, cell, int(seed), benchmark), [])
        numbers.append([metric, repr(float(value)), int(n)])
    found: dict[str, tuple[str, int, dict[str, str]]] = {}
    for (run, cell, seed, benchmark), numbers in held.items():
        text = json.dumps(sorted(numbers))
        hashes = found.setdefault(run, (cell, seed, {}))[2]
        hashes[benchmark] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _commit(plan: Plan, run: str) -> str | None:
    """The commit of a run's last start; None where that is not known."""
    try:
        file = plan.outputs / "runs" / run / "provenance.json"
        return (read_json(file) or {"starts": [{}]})["starts"][-1].get("git_sha")
    except (UserError, LookupError, TypeError, AttributeError):
        return None


def _sha(commit: str | None) -> str:
    return commit[:SHA] if commit else "unknown"


def _same(old: Number | None, new: Number | None) -> bool:
    if old is None or new is None:
        return old is new
    close = all(
        math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) or (math.isnan(a) and math.isnan(b))
        for a, b in zip(old[:2], new[:2], strict=True)
    )
    return close and old.n == new.n


def _place(row: Mapping[str, Any]) -> Place:
    return row["cell"], row["benchmark"], row["metric"]


def _number(row: Mapping[str, Any]) -> Number:
    mean, std = (math.nan if row[k] is None else float(row[k]) for k in ("mean", "std"))
    return Number(mean, std, row["n"])


def _given(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _file(plan: Plan, name: str) -> Path:
    """Errors: `UserError` for a name that would not be one of a file in the folder."""
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > LONGEST:
        raise UserError(
            f"--freeze {name!r}: must be a name of letters, digits, '.', '_' and '-', "
            f"at most {LONGEST} long"
        )
    return plan.folder / "frozen" / f"{name}.json"


def _hash(record: Mapping[str, Any]) -> str:
    """Over the content, whatever the order and spaces of its file."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
