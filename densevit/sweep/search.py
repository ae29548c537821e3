"""Sample the settings of `search:` in a sweep file; the samples become rows like a zip's.

Random rows depend only on the file. Optuna proposes rows in rounds: a round depends on the file and
on the results of earlier rounds, in row order and not in order of completion; its rows are stored
beside the plan. So the same file gives the same runs under every launcher.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from densevit.config.run_config import FIELDS
from densevit.runs.directory import run_folder, sweep_folder
from densevit.runs.record_file import CHECKED, RecordKind, read_record
from densevit.sweep.grid import expand
from densevit.sweep.spec import Search, Settings, SweepSpec
from densevit.utils.errors import UserError

DIGITS = 4  # significant digits of a drawn number: a table shows the exact value that was trained


@CHECKED
class _ProposedRecord(TypedDict):
    """search.json: the rows that were proposed, and what they depend on."""

    search: dict[str, Any]
    rows: list[Settings]


_PROPOSED = RecordKind(
    _ProposedRecord, "remove the file, and the rows are proposed again from the runs' results"
)


def drawn(spec: SweepSpec, outputs: Path) -> SweepSpec:
    """Return the sweep with its search as rows of a zip; unchanged without a search.

    Errors: `UserError` if Optuna is needed and not installed.
    """
    search = spec.search
    if search is None:
        return spec
    rows = _at_random(search) if search.method == "random" else _proposed(spec, search, outputs)
    axes = {name: [row[name] for row in rows] for name in search.space}
    return spec.model_copy(update={"zip": [*spec.zip, axes]})


def record(spec: SweepSpec) -> dict[str, Any] | None:
    """Return the record of an Optuna search, else None; `spec` is the result of `drawn`."""
    if spec.search is None or spec.search.method == "random":
        return None
    axes = spec.zip[-1]
    rows = [dict(zip(axes, row, strict=True)) for row in zip(*axes.values(), strict=True)]
    return {"search": _rows_depend_on(spec.search), "rows": rows}


def record_file(spec: SweepSpec, outputs: Path) -> Path:
    """Return the file of that record."""
    return sweep_folder(outputs, spec.name) / "search.json"


def _rows_depend_on(search: Search) -> dict[str, Any]:
    """Return what the rows depend on besides results; more samples keep the first rows."""
    return search.model_dump(exclude={"samples"})


def _at_random(search: Search) -> list[Settings]:
    """Draw row by row, so that more samples keep the first rows."""
    source = random.Random(search.seed)
    return [
        {name: _draw(name, *axis, source) for name, axis in search.axes().items()}
        for _ in range(search.samples)
    ]


def _draw(name: str, kind: str, values: Sequence[Any], source: random.Random) -> Any:
    if kind == "choice":
        return source.choice(values)
    low, high = values
    if kind == "loguniform":
        return _number(name, math.exp(source.uniform(math.log(low), math.log(high))), values)
    return _number(name, source.uniform(low, high), values)


def _number(name: str, value: float, bounds: Sequence[float]) -> float | int:
    """Round a value to an integer or `DIGITS` digits, as its field requires, within the bounds."""
    rounded = round(value) if FIELDS[name].annotation is int else float(f"{value:.{DIGITS}g}")
    return min(max(rounded, bounds[0]), bounds[1])


def _proposed(spec: SweepSpec, search: Search, outputs: Path) -> list[Settings]:
    """Return the rows of all rounds that are known: up to the first with unfinished runs."""
    known = read_record(record_file(spec, outputs), _PROPOSED)
    rows = known["rows"] if known and known["search"] == _rows_depend_on(search) else []
    if any(row.keys() != search.space.keys() for row in rows):
        file = record_file(spec, outputs)
        raise UserError(f"{file}: is damaged: rows: lack an axis of the search; {_PROPOSED.remedy}")
    rows = rows[: search.samples]
    values: list[float | None] = []
    while len(rows) < search.samples:
        # Propose whole rounds: the rows must not depend on an earlier number of samples.
        begin = len(rows) // search.round * search.round
        for row in rows[len(values) : begin]:
            done, value = _reached(spec, row, outputs)
            if not done:
                return rows
            values.append(value)
        found = _propose(search, rows[:begin], values)
        rows = [*rows, *found[len(rows) - begin :]][: search.samples]
    return rows


def _reached(spec: SweepSpec, row: Settings, outputs: Path) -> tuple[bool, float | None]:
    """Return whether all runs of a row have ended, and the mean val top-1 of those that finished,
    or of those that were stopped early if none finished."""
    axes = {name: [value] for name, value in row.items()}
    runs = expand(spec.model_copy(update={"zip": [*spec.zip, axes], "baseline": None})).runs
    if runs[0].config.unlabelled:
        raise UserError(
            f"{spec.file}: search: unlabelled runs have no val accuracy to rank them by"
        )
    # A run recorded as `running` may have died; it is restarted first.
    try:
        statuses = [run_folder(outputs, run.id).recorded_status() for run in runs]
    except UserError:  # what it reached is not known
        return False, None
    if any(status.state not in ("finished", "stopped", "failed") for status in statuses):
        return False, None
    for state in ("finished", "stopped"):
        reached = [s.top1 for s in statuses if s.state == state and s.top1 is not None]
        if reached:
            return True, sum(reached) / len(reached)
    return True, None


def _propose(
    search: Search, rows: Sequence[Settings], values: Sequence[float | None]
) -> list[Settings]:
    """Return the rows of the next round."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "search.method: optuna is not installed; pip install 'densevit[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {name: _distribution(*axis) for name, axis in search.axes().items()}
    # Seeded by the round: proposals depend on the results alone, not on earlier calls.
    sampler = optuna.samplers.TPESampler(
        seed=search.seed * 1_000_003 + len(rows), n_startup_trials=search.round,
        multivariate=True, constant_liar=True,
    )  # fmt: skip
    study = optuna.create_study(sampler=sampler, direction="maximize")
    states = optuna.trial.TrialState
    for row, value in zip(rows, values, strict=True):
        state = states.FAIL if value is None else states.COMPLETE
        made = optuna.trial.create_trial(params=row, distributions=space, value=value, state=state)
        study.add_trial(made)
    proposals = [study.ask(space).params for _ in range(search.round)]
    return [
        {
            name: row[name] if kind == "choice" else _number(name, row[name], values)
            for name, (kind, values) in search.axes().items()
        }
        for row in proposals
    ]


def _distribution(kind: str, values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if kind == "choice":
        return CategoricalDistribution(values)
    low, high = values
    return FloatDistribution(float(low), float(high), log=kind == "loguniform")
