"""Settings that are drawn instead of listed: `search:` in a sweep file becomes rows like a zip's.

Drawn at random, the rows follow from the file alone. Optuna proposes them in rounds: those of a
round follow from the file and the results of the rounds before, in their order and not in that in
which they came, and are kept beside the plan. So the same file gives the same runs, whatever
launches them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from densevit.config import FIELDS
from densevit.errors import UserError
from densevit.rundir import read_json, run_folder, sweep_folder
from densevit.sweep.grid import Run, expand
from densevit.sweep.spec import Search, Settings, SweepSpec

DIGITS = 4  # significant ones, of a drawn number: what is written in a table is what was trained
Value = Callable[[Settings], float | None]


def drawn(spec: SweepSpec, outputs: Path) -> SweepSpec:
    """The sweep with its search as rows of a zip; itself if it has none.

    Errors: `UserError` if Optuna is needed and not installed.
    """
    search = spec.search
    if search is None:
        return spec
    rows = _at_random(search) if search.method == "random" else _proposed(spec, search, outputs)
    axes = {name: [row[name] for row in rows] for name in search.space}
    return spec.model_copy(update={"zip": [*spec.zip, axes]})


def record(spec: SweepSpec) -> dict[str, Any] | None:
    """What is kept of a search that Optuna proposes: `spec` is what `drawn` gave."""
    if spec.search is None or spec.search.method == "random":
        return None
    axes = spec.zip[-1]
    rows = [dict(zip(axes, row, strict=True)) for row in zip(*axes.values(), strict=True)]
    return {"search": _asked(spec), "rows": rows}


def record_file(spec: SweepSpec, outputs: Path) -> Path:
    """Where that is kept."""
    return sweep_folder(outputs, spec.name) / "search.json"


def _asked(spec: SweepSpec) -> dict[str, Any]:
    """What the rows depend on beside results; more samples leave the first ones as they are."""
    return spec.search.model_dump(exclude={"samples"})


def _at_random(search: Search) -> list[Settings]:
    """A row after the other, so that more samples leave the first as they are."""
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
    """As the field has it, a whole number or one of few digits, and within the bounds still."""
    told = round(value) if FIELDS[name].annotation is int else float(f"{value:.{DIGITS}g}")
    return min(max(told, bounds[0]), bounds[1])


def _proposed(spec: SweepSpec, search: Search, outputs: Path) -> list[Settings]:
    """The rows of all rounds that can be known: up to the first that has runs to be done."""
    held = read_json(record_file(spec, outputs)) or {}
    rows = held["rows"] if held.get("search") == _asked(spec) else []
    rows = rows[: search.samples]
    values: list[float | None] = []
    while len(rows) < search.samples:
        # Whole rounds, so that it makes no difference how many samples were asked for before.
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
    """Whether the runs of a row are over, and the mean top-1 on val of those that are finished, or
    of those that were stopped early if none is."""
    axes = {name: [value] for name, value in row.items()}
    runs = expand(spec.model_copy(update={"zip": [*spec.zip, axes], "baseline": None})).runs
    statuses = [_status(run, outputs) for run in runs]
    if any(status.state not in ("finished", "stopped", "failed") for status in statuses):
        return False, None
    for state in ("finished", "stopped"):
        reached = [s.top1 for s in statuses if s.state == state and s.top1 is not None]
        if reached:
            return True, sum(reached) / len(reached)
    return True, None


def _status(run: Run, outputs: Path) -> Any:
    return run_folder(
        outputs, run.id
    ).word()  # who says `running` may have died, and is started first


def _propose(
    search: Search, rows: Sequence[Settings], values: Sequence[float | None]
) -> list[Settings]:
    """The rows of the next round."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "search.method: optuna is not installed; pip install 'densevit[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {name: _distribution(*axis) for name, axis in search.axes().items()}
    # Seeded by the round: what it proposes depends on the results alone, not on who asked before.
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
    asked = [study.ask(space).params for _ in range(search.round)]
    return [
        {
            name: row[name] if kind == "choice" else _number(name, row[name], values)
            for name, (kind, values) in search.axes().items()
        }
        for row in asked
    ]


def _distribution(kind: str, values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if kind == "choice":
        return CategoricalDistribution(values)
    return FloatDistribution(*map(float, values), log=kind == "loguniform")
