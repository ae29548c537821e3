"""A sweep as runs: a pure function of the sweep file, the same on every machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from densevit.config import (
    RunConfig,
    applies,
    cell_text,
    digest,
    inapplicable,
    run_id,
    science_texts,
)
from densevit.errors import UserError
from densevit.layers import Layer, build
from densevit.sweep.spec import Exclusion, Settings, SweepSpec, matches


@dataclass(frozen=True, eq=False)
class Run:
    """One planned run: a cell of the grid with one seed. Equal only to itself; compare ids.

    `nearer` names the resources that an exception (`when`) or a command gives to this run.
    """

    id: str
    cell: str
    config: RunConfig
    resources: dict[str, Any]
    nearer: frozenset[str] = frozenset()

    @property
    def seed(self) -> int:
        return self.config.seed


@dataclass(frozen=True)
class Grid:
    """The runs, seed-major (a half-done sweep is still a fair table), cells in the file's order.

    `axes` are the fields in which the cells differ; `merged` counts combinations that are the
    same cell as another one; `excluded` tells how many cells each rule left out.
    """

    runs: tuple[Run, ...]
    axes: tuple[str, ...]
    merged: int
    excluded: tuple[tuple[Exclusion, int], ...]

    @property
    def cells(self) -> tuple[Run, ...]:
        """The first run of each cell."""
        return tuple({run.cell: run for run in reversed(self.runs)}.values())[::-1]


@dataclass(frozen=True)
class Count:
    """How large a sweep is: what `expand` would give, without the runs.

    `combinations` are all that the file names, before any of them is merged or excluded.
    """

    combinations: int
    cells: int
    runs: int
    merged: int
    excluded: tuple[tuple[Exclusion, int], ...]


def expand(spec: SweepSpec) -> Grid:
    """The runs of a sweep.

    Errors: `UserError` for a value that a field does not take, when nothing is left, and for a
    baseline that is no cell.
    """
    tally = _Tally(spec)
    cells = [combination for combination in _combinations(spec) if tally.takes(combination)]
    size = tally.count()
    axes = _axes(spec, [cell.config for cell in cells])
    return Grid(tuple(_runs(spec, cells)), axes, size.merged, size.excluded)


NULL = "null"  # as a person writes it


def count(spec: SweepSpec) -> Count:
    """The size of a sweep, however large: combinations are looked at one by one and not kept.

    Memory: 60 to 110 bytes a cell, kept or excluded, for a set of numbers which doubles as it
    grows (67 MiB for a million). Errors: those of `expand`.
    """
    tally = _Tally(spec)
    for combination in _combinations(spec):
        tally.takes(combination)
    return tally.count()


def cell_values(config: RunConfig, axes: tuple[str, ...]) -> dict[str, Any]:
    """A cell's value on each axis; None where the axis does not apply to it, and `NULL` for a value
    of None, which is one like any other: `init_checkpoint: [null, w.pt]`."""
    found: dict[str, Any] = {}
    unused = inapplicable(config)
    for name in axes:
        value = getattr(config, name)
        found[name] = None if name in unused else NULL if value is None else value
    return found


def cell_label(config: RunConfig, axes: tuple[str, ...]) -> str:
    """A cell in words: its values on the axes that apply to it."""
    values = [v for v in cell_values(config, axes).values() if v is not None]
    return " · ".join(value_word(value) for value in values) or config.cl_mode


def value_word(value: Any) -> str:
    """A field's value as a person writes it in YAML; an en dash for None (does not apply)."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items()) or "{}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Tally:
    """Sorts combinations into new cells, cells there were before, and those that a rule leaves out.

    Of each cell it remembers the id alone, as a number.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self.spec = spec
        self.combinations = 0
        self.merged = 0
        self.cells: set[int] = set()
        self.left_out: list[set[int]] = [set() for _ in spec.exclude]
        self.has_baseline = spec.baseline is None

    def takes(self, combination: _Combination) -> bool:
        """Whether the combination is a new cell; to be asked once for each, in their order."""
        self.combinations += 1
        cell = int(digest(combination.text), 16)
        rule = self._excluded_by(combination)
        if rule is not None:
            self.left_out[rule].add(cell)
            return False
        if cell in self.cells:
            self.merged += 1
            return False
        self.cells.add(cell)
        if not self.has_baseline:
            self.has_baseline = matches(self.spec.baseline, combination.config)
        return True

    def _excluded_by(self, combination: _Combination) -> int | None:
        """The number of the rule that leaves it out; none leaves out an included cell."""
        if combination.source != "include":
            for number, rule in enumerate(self.spec.exclude):
                if matches(rule.where, combination.config):
                    return number
        return None

    def count(self) -> Count:
        """What there was, after the last combination.

        Errors: `UserError` when nothing is left, and for a baseline that is no cell.
        """
        spec, cells = self.spec, len(self.cells)
        if not cells:
            raise UserError(f"{spec.file}: exclude: every cell is left out; nothing remains to run")
        if not self.has_baseline:
            raise UserError(f"{spec.file}: baseline: {spec.baseline} is no cell of this sweep")
        excluded = tuple(zip(spec.exclude, map(len, self.left_out), strict=True))
        return Count(self.combinations, cells, cells * len(spec.seeds), self.merged, excluded)


# Fields that `layers.build` checks against one another; each other it checks alone. A test reads
# its source, so that a check which is added there is not forgotten here.
CHECKED_TOGETHER = (
    ("warmup_epochs", "epochs"),
    ("batch_size", "grad_accumulation"),
    ("pretrained", "init_checkpoint"),
    ("learnable_temp", "temperature"),
)


@dataclass(eq=False)
class _Choice:
    """A value of an axis or a row of a zip: `settings` as in the file, and what they become."""

    settings: Settings
    values: Settings = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


class _Combination(NamedTuple):
    """`source` is the section of the file that it comes from, `text` the `cell_text`."""

    source: str
    config: RunConfig
    text: str


def _combinations(spec: SweepSpec) -> Iterator[_Combination]:
    """Every combination of the grid and the zips, then the included cells, all of them checked.

    A combination passes the checks if its choices, alone and where they are checked together, have
    passed them in others. It is put together from those then, which is much faster than `build`;
    whatever is new is left to `build` and its errors.
    """
    axes = _choices(spec)
    source = "grid" if axes else "base"
    checks = _checks(axes)
    passed: set[Any] = set()
    base: RunConfig | None = None
    base_texts: dict[str, str] = {}
    # A file with includes alone means just those cells and not the bare base as well.
    for choices in itertools.product(*axes) if axes or not spec.include else ():
        checked = [check(choices) for check in checks]
        if base is None or not passed.issuperset(checked):
            settings = {k: v for choice in choices for k, v in choice.settings.items()}
            base = _build(spec, source, settings)
            texts = science_texts(base)
            for choice in choices:
                choice.values = {name: getattr(base, name) for name in choice.settings}
                choice.texts = {name: texts[name] for name in choice.settings}
            base_texts = {name: text for name, text in texts.items() if text or name in settings}
            passed.update(checked)
        values: Settings = {}
        texts = base_texts.copy()
        for choice in choices:
            values.update(choice.values)
            texts.update(choice.texts)
        config = base.model_copy(update=values)
        yield _Combination(source, config, cell_text(texts, config))
    for extra in spec.include:
        config = _build(spec, "include", extra)
        yield _Combination("include", config, cell_text(science_texts(config), config))


def _choices(spec: SweepSpec) -> list[list[_Choice]]:
    axes = [[_Choice({name: value}) for value in values] for name, values in spec.grid.items()]
    for group in spec.zip:
        rows = zip(*group.values(), strict=True)
        axes.append([_Choice(dict(zip(group, row, strict=True))) for row in rows])
    return axes


def _checks(axes: list[list[_Choice]]) -> list[Callable[[tuple[_Choice, ...]], Any]]:
    """What `build` looks at in a combination: each choice, and pairs of choices.

    Fields that are checked together and lie on one axis need no look of their own.
    """
    axis_of = {name: number for number, axis in enumerate(axes) for name in axis[0].settings}
    looked_at = {(number,) for number in range(len(axes))}
    for names in CHECKED_TOGETHER:
        looked_at.add(tuple(sorted({axis_of[name] for name in names if name in axis_of})))
    return [itemgetter(*numbers) for numbers in sorted(looked_at) if numbers]


def _build(spec: SweepSpec, source: str, settings: Settings) -> RunConfig:
    return build([*spec.layers, Layer(f"{spec.file}: {source}", settings)])


def _runs(spec: SweepSpec, cells: Sequence[_Combination]) -> Iterator[Run]:
    """The runs of cells, seed-major."""
    made = [(digest(cell.text), cell, _resources(spec, cell.config)) for cell in cells]
    for seed in spec.seeds:
        for cell_id, cell, (resources, nearer) in made:
            config = cell.config
            if seed != config.seed:
                config = config.model_copy(update={"seed": seed})
            yield Run(run_id(cell.text, seed), cell_id, config, dict(resources), nearer)


def _resources(spec: SweepSpec, config: RunConfig) -> tuple[dict[str, Any], frozenset[str]]:
    """What a run asks for, and of these what an exception says."""
    resources = spec.resources.model_dump(exclude={"when"}, exclude_none=True)
    exceptions: dict[str, Any] = {}
    for rule in spec.resources.when:
        if matches(rule.where, config):
            exceptions |= rule.model_dump(exclude={"where"}, exclude_none=True)
    return resources | exceptions, frozenset(exceptions)


def _axes(spec: SweepSpec, configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """The fields of the file in which cells to which they apply differ."""
    varied = []
    for name in spec.axes():
        values = (getattr(config, name) for config in configs if applies(name, config))
        first = next(values, None)
        if any(value != first for value in values):
            varied.append(name)
    return tuple(varied)
