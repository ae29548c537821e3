"""The sweep file as a checked record; `grid.expand` turns it into runs."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from densevit import yamlfile
from densevit.config import FIELDS, Int, Name, RunConfig, applies, is_execution
from densevit.errors import UserError, nearest
from densevit.layers import Layer, absolute_paths, base_path, explain, read_layers

Settings = dict[str, Any]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Exclusion(_Record):
    """Cells that are left out, and why."""

    where: Settings = Field(min_length=1)
    because: str = Field(min_length=1)


class Resources(_Record):
    """What a run asks of a cluster: GPUs, processors and memory are those of each of its nodes.

    `pack` runs share what one asks for, side by side.
    """

    gpus: float | None = Field(None, ge=0, allow_inf_nan=False)
    cpus: Int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    mem: str | None = Field(None, pattern=r"^[0-9]+(\.[0-9]+)?[KMGT]?$")
    nodes: Int | None = Field(None, ge=1)
    pack: Int | None = Field(None, ge=1)


class ResourcesWhen(Resources):
    """Other resources for the runs that match `where`."""

    where: Settings = Field(min_length=1)


class SweepResources(Resources):
    """The resources of every run, and exceptions; of several that match, the last one counts."""

    when: list[ResourcesWhen] = []


def _address(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"auto|local|[^\s:/]+:[0-9]{1,5}", value):
        raise ValueError("must be auto, local or HOST:PORT")
    return value


class RaySettings(_Record):
    """How a sweep runs on Ray; what a run needs is the sweep's `resources`, unless it is said here.

    `max_failures`: how often a run is started again that has failed.
    """

    address: Annotated[str | None, AfterValidator(_address)] = None
    gpus_per_run: float | None = Field(None, ge=0, allow_inf_nan=False)
    cpus_per_run: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_concurrent: Int | None = Field(None, ge=1)
    max_failures: Int = Field(2, ge=0)


class EarlyStop(_Record):
    """Which runs are ended before their time: those that after `grace_epochs`, and each `reduction`
    times as many, are not among the best 1/`reduction` (asha), or fall behind the median (median).
    """

    scheduler: Literal["asha", "median"]
    metric: str = "val/top1"
    grace_epochs: Int = Field(1, ge=1)
    reduction: float = Field(3.0, gt=1, allow_inf_nan=False)
    allow_biased: bool = False

    @property
    def mode(self) -> Literal["max", "min"]:
        """Which values are better."""
        return "min" if self.metric.endswith("nll") else "max"


KINDS = ("uniform", "loguniform", "choice")


class Search(_Record):
    """Settings that are drawn. `space` has for each field {uniform: [LOW, HIGH]}, {loguniform:
    [LOW, HIGH]} or {choice: [...]}; optuna proposes `round` settings at once, and learns from what
    they reach on val.
    """

    space: dict[str, dict[Literal["uniform", "loguniform", "choice"], list[Any]]] = Field(
        min_length=1
    )
    samples: Int = Field(ge=1, le=100_000)
    seed: Int = Field(0, ge=0, lt=2**31)
    method: Literal["random", "optuna"] = "random"
    round: Int = Field(8, ge=1)

    def axes(self) -> dict[str, tuple[str, list[Any]]]:
        """Field to the kind of its distribution and its bounds or choices."""
        return {name: next(iter(given.items())) for name, given in self.space.items()}


MOST_SEEDS = 10_000


def _seed_list(value: Any) -> Any:
    """A number of seeds n means the seeds 0 to n-1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and value > MOST_SEEDS:
        raise ValueError(f"at most {MOST_SEEDS} seeds")
    return list(range(value)) if isinstance(value, int) and value is not True else value


Seeds = Annotated[
    list[Annotated[Int, Field(ge=0, lt=2**31)]], BeforeValidator(_seed_list), Field(min_length=1)
]


class SweepSpec(_Record):
    """What a sweep file says. `layers` are the settings that every cell starts from."""

    name: Name
    description: str = ""
    fixed: Settings = {}
    grid: dict[str, list[Any]] = {}
    zip: list[dict[str, list[Any]]] = []
    include: list[Settings] = []
    exclude: list[Exclusion] = []
    seeds: Seeds = [0]
    baseline: Settings | None = None
    launcher: Literal["local", "slurm", "ray"] = "local"
    profile: str | None = Field(None, min_length=1)
    resources: SweepResources = SweepResources()
    ray: RaySettings = RaySettings()
    early_stop: EarlyStop | None = None
    search: Search | None = None
    file: Path
    layers: tuple[Layer, ...]

    def axes(self) -> list[str]:
        """The fields that the sweep varies, in the order of the file."""
        named = [*self.grid, *(k for group in self.zip for k in group)]
        named += [k for extra in self.include for k in extra]
        named += self.search.space if self.search else []
        return list(dict.fromkeys(named))


def read_spec(path: Path) -> SweepSpec:
    """Read and check a sweep file.

    Errors: `UserError` naming the file, the key and the nearest valid name.
    """
    data = yamlfile.load(path)
    base = data.pop("base", None)
    layers = read_layers(base_path(base, path)) if base is not None else []
    for taken in ("file", "layers"):
        if taken in data:
            valid = [*_KEYS, "base"]
            raise UserError(f"{path}: {taken}: unknown key; {nearest(taken, valid)}")
    try:
        spec = SweepSpec(**data, file=path, layers=tuple(layers))
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
        raise UserError(f"{path}: {_explain(problems[0])}") from None
    _check_keys(spec)
    fixed = Layer(f"{path}: fixed", absolute_paths(spec.fixed, path.parent))
    return spec.model_copy(update={"layers": (*layers, fixed)})


def matches(where: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether every value equals the wanted one; a field that does not apply equals nothing.

    Wanted text may hold * and ? for a pattern, and a list wants any of its values.
    """
    return all(
        applies(name, config) and _equal(wanted, getattr(config, name))
        for name, wanted in where.items()
    )


def _equal(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, list):
        return any(_equal(one, value) for one in wanted)
    if isinstance(wanted, str) and isinstance(value, str):
        return fnmatch.fnmatchcase(value, wanted)
    # 1 and 1.0 are equal, 1 and true are not
    return isinstance(wanted, bool) == isinstance(value, bool) and wanted == value


_SECTIONS: dict[Any, type[BaseModel]] = {
    "exclude": Exclusion, "resources": SweepResources, "ray": RaySettings, "early_stop": EarlyStop,
    "search": Search,
}  # fmt: skip
_KEYS = [name for name in SweepSpec.model_fields if name not in ("file", "layers")]


def _explain(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "too_short":
        key = ".".join(str(p) for p in problem["loc"])
        return f"{key}: must not be empty"
    if problem["type"] == "string_pattern_mismatch" and problem["loc"][-1] == "mem":
        key = ".".join(str(part) for part in problem["loc"])
        return f"{key}: {problem['input']!r} must be a number with K, M, G or T behind it"
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return explain(problem, [*_KEYS, "base"])
    if problem["type"] == "extra_forbidden":
        valid = _SECTIONS.get(problem["loc"][0], Resources)
        if "when" in problem["loc"]:
            valid = ResourcesWhen
        return explain(problem, list(valid.model_fields))
    return explain(problem, {})


def _check_keys(spec: SweepSpec) -> None:
    """Every name in the file must be a field, and an axis must be one that makes a difference."""
    file = spec.file
    for section, names in _named_fields(spec):
        for name in names:
            if name not in FIELDS:
                raise UserError(f"{file}: {section}.{name}: unknown key; {nearest(name, FIELDS)}")
            if name == "seed":
                raise UserError(f"{file}: {section}.seed: replicates are given by `seeds:`")
            if section in ("grid", "zip", "include", "search.space") and is_execution(name):
                raise UserError(
                    f"{file}: {section}.{name}: says how a run is executed and makes no other "
                    f"run; it belongs under `fixed:`"
                )
    _check_search(spec)
    for section, where in [
        *(("exclude.where", rule.where) for rule in spec.exclude),
        *(("resources.when.where", rule.where) for rule in spec.resources.when),
        ("baseline", spec.baseline or {}),
    ]:
        _check_where(f"{file}: {section}", where)
    seen: dict[str, str] = {}
    for section, axes in [("grid", spec.grid), *(("zip", group) for group in spec.zip)]:
        for name, values in axes.items():
            if spec.search and name in spec.search.space:
                raise UserError(f"{file}: search.space.{name}: is an axis of {section} already")
            if not values:
                raise UserError(f"{file}: {section}.{name}: the axis is empty")
            if name in seen:
                raise UserError(f"{file}: {section}.{name}: is an axis of {seen[name]} already")
            seen[name] = section
    for group in spec.zip:
        lengths = {name: len(values) for name, values in group.items()}
        if len(set(lengths.values())) != 1:
            shown = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            raise UserError(f"{file}: zip: lists of equal length are needed: {shown or 'no axis'}")
    if len(set(spec.seeds)) != len(spec.seeds):
        raise UserError(f"{file}: seeds: {spec.seeds} names a seed twice")


def _check_search(spec: SweepSpec) -> None:
    """Bounds that are numbers in their order, and that the field can have."""
    for name, given in (spec.search.space if spec.search else {}).items():
        source = f"{spec.file}: search.space.{name}"
        if len(given) != 1:
            raise UserError(f"{source}: one of {', '.join(KINDS)} is needed, found {len(given)}")
        kind, values = next(iter(given.items()))
        if not values:
            raise UserError(f"{source}: the axis is empty")
        for value in values:
            try:
                RunConfig(**{name: value})
            except ValidationError as error:
                told = explain(error.errors()[0], FIELDS)
                raise UserError(f"{spec.file}: search.space.{told}") from None
        if kind == "choice":
            continue
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        least = 0 if kind == "loguniform" else -math.inf
        if len(numbers) != 2 or len(values) != 2 or not least < numbers[0] < numbers[1]:
            above = " above 0" if kind == "loguniform" else ""
            raise UserError(
                f"{source}.{kind}: {values} must be two numbers{above}, the lower first"
            )


def _check_where(source: str, where: Settings) -> None:
    """A wanted value that its field cannot have would match nothing, in silence."""
    for name, wanted in where.items():
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if isinstance(value, str) and re.search(r"[*?\[]", value):
                continue
            try:
                RunConfig(**{name: value})
            except ValidationError as error:
                raise UserError(f"{source}.{explain(error.errors()[0], FIELDS)}") from None


def _named_fields(spec: SweepSpec) -> list[tuple[str, list[str]]]:
    sections = [("fixed", list(spec.fixed)), ("grid", list(spec.grid))]
    sections += [("zip", list(group)) for group in spec.zip]
    sections += [("include", list(extra)) for extra in spec.include]
    sections += [("search.space", list(spec.search.space))] if spec.search else []
    sections += [("exclude.where", list(rule.where)) for rule in spec.exclude]
    sections += [("resources.when.where", list(rule.where)) for rule in spec.resources.when]
    return [*sections, ("baseline", list(spec.baseline or {}))]
