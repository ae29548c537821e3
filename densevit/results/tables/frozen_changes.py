"""Find which frozen numbers have changed, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from densevit.results.collect.numbers import coverage
from densevit.results.tables.format import known_metrics, spread_text
from densevit.results.tables.frozen_numbers import (
    SAME,
    Key,
    Number,
    cell_numbers,
    key_of,
    last_commit,
    number_of,
    read,
    run_hashes,
    short_commit,
)
from densevit.results.tables.table import NOT_APPLICABLE, TextTable
from densevit.sweep.plan import Plan


class Change(NamedTuple):
    """A number that has changed; `was` or `now` is None if it did not or does not exist."""

    cell: str
    label: str
    benchmark: str
    metric: str
    was: Number | None
    now: Number | None
    causes: str


class Changes(NamedTuple):
    """The changes since the freeze.

    `lines` reports the runs that changed and the number of `changes`, the changed numbers; `table`
    shows those of standard metrics, None if there are none.
    """

    lines: list[str]
    changes: list[Change]
    table: TextTable | None


def changes_since(plan: Plan, frame: pd.DataFrame, name: str) -> Changes:
    """Return the numbers that have changed since they were frozen as `name`, and the causes.

    Errors: `UserError` if there is no such file, or if it is damaged or was edited.
    """
    record = read(plan, name)
    runs = run_hashes(frame)
    run_changes = _run_changes(plan, record["runs"], runs)
    old = {key_of(row): number_of(row) for row in record["numbers"]}
    labels = {row["cell"]: row["label"] for row in record["numbers"]}
    labels |= {run.cell: plan.label(run) for run in plan.grid.cells}
    new = cell_numbers(frame)
    changes = [
        Change(key[0], labels[key[0]], key[1], key[2], old.get(key), new.get(key),
             _causes(key, run_changes))
        for key in dict.fromkeys([*new, *old])
        if not _same(old.get(key), new.get(key))
    ]  # fmt: skip
    lines = [change.text for change in run_changes]
    lines.append(
        f"{len(changes)} of {len(old.keys() | new.keys())} numbers changed"
        if changes
        else f"No number has changed since {record['frozen']}"
    )
    return Changes(lines, changes, _table(name, record["frozen"], changes))


class _RunChange(NamedTuple):
    """A change of a run's results, in short and as a line; `benchmarks` None means all."""

    cell: str
    benchmarks: frozenset[str] | None
    short: str
    text: str


def _run_changes(
    plan: Plan, old: Mapping[str, Any], new: Mapping[str, tuple[str, int, dict[str, str]]]
) -> list[_RunChange]:
    """Return the runs that were added, lost their results, or have other results."""
    labels = {run.id: plan.label(run) for run in plan.runs}
    missing = old.keys() - new.keys()
    covered = coverage(plan).set_index("run").to_dict("index") if missing else {}
    found: list[_RunChange] = []
    for run in dict.fromkeys([*old, *new]):
        cell, seed = (old[run]["cell"], old[run]["seed"]) if run in old else new[run][:2]
        where = f"{run} ({labels[run]}, seed {seed})" if run in labels else f"{run} (seed {seed})"
        if run not in new:
            short, more = _missing(run, covered)
            found.append(_RunChange(cell, None, f"{run} {short}", f"{where} {short}{more}"))
        elif run not in old:
            found.append(_RunChange(cell, None, f"{run} added", f"{where} was added"))
        else:
            found += _benchmark_changes(plan, run, where, old[run], new[run][2])
    return found


def _missing(run: str, covered: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return why a run that had results has none now: a short reason, and details."""
    if run not in covered:
        return "is no longer part of the sweep", ""
    state, message = covered[run]["state"], covered[run]["message"]
    reason = "has no readable results" if state == "finished" else f"is {state} now"
    return reason, f": {message}" if message else ""


def _benchmark_changes(
    plan: Plan, run: str, where: str, old: Mapping[str, Any], hashes: Mapping[str, str]
) -> list[_RunChange]:
    """Return the changes of a run that has results before and after."""
    before = old["hashes"]
    groups = {
        "changed": [b for b in before if b in hashes and before[b] != hashes[b]],
        "added": [b for b in hashes if b not in before],
        "removed": [b for b in before if b not in hashes],
    }
    commit = last_commit(plan, run)
    versions = (short_commit(sha) for sha in (old["git_sha"], commit))
    code = "" if commit == old["git_sha"] else " (code {}, now {})".format(*versions)
    return [
        _RunChange(old["cell"], frozenset(names), f"{run} {kind}",
               f"{where}: results {kind} on {', '.join(names)}{code}")
        for kind, names in groups.items()
        if names
    ]  # fmt: skip


def _causes(key: Key, run_changes: Sequence[_RunChange]) -> str:
    """Return the changes of runs that concern a number, in short."""
    cell, benchmark, _ = key
    fitting = [
        change.short
        for change in run_changes
        if change.cell == cell and (change.benchmarks is None or benchmark in change.benchmarks)
    ]
    return ", ".join(fitting)


def _table(name: str, when: str, changes: Sequence[Change]) -> TextTable | None:
    known = known_metrics()
    standard = [change for change in changes if change.metric in known]
    if not standard:
        return None
    rows = [
        [
            m.label,
            m.benchmark,
            m.metric,
            m.causes,
            _number_text(m.was, m.metric),
            _number_text(m.now, m.metric),
        ]
        for m in standard
    ]
    left = sorted({change.metric for change in changes} - {change.metric for change in standard})
    return TextTable(
        f"Changed since {name} ({when})",
        ["cell", "benchmark", "metric", "cause", "was", "now"],
        rows,
        f"Also changed: {', '.join(left)}." if left else "",
        4,
    )


def _number_text(number: Number | None, metric: str) -> str:
    if number is None:
        return NOT_APPLICABLE
    return f"{spread_text(*number, metric)} (n={number.n})"


def _same(old: Number | None, new: Number | None) -> bool:
    if old is None or new is None:
        return old is new
    close = all(
        math.isclose(a, b, rel_tol=SAME, abs_tol=SAME) or (math.isnan(a) and math.isnan(b))
        for a, b in zip(old[:2], new[:2], strict=True)
    )
    return close and old.n == new.n
