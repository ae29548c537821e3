"""The sweep file as a validated record; `grid.expand` turns it into runs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from densevit.config.loss_modes import applies
from densevit.config.record import drop_empty
from densevit.config.resolve import Layer
from densevit.config.run_config import Int, Name, RunConfig
from densevit.utils.errors import nearest

Settings = dict[str, Any]


def _without_empty(value: Any) -> Any:
    """Drop the entries of a list whose lines have been commented out."""
    return [entry for entry in value if entry is not None] if isinstance(value, list) else value


_Entries = BeforeValidator(_without_empty)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    _drop_empty = model_validator(mode="before")(drop_empty)


class Exclusion(_Record):
    """Cells to exclude, and the reason."""

    where: Settings = Field(min_length=1)
    because: str = Field(min_length=1)


class Resources(_Record):
    """The resources that a run requests; GPUs, CPUs and memory are per node.

    `pack` runs share one run's request, side by side.
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
    """The resources of every run, and exceptions; the last exception that matches wins."""

    when: Annotated[list[ResourcesWhen], _Entries] = []


def check_address(value: str | None) -> str | None:
    """Return the address of a Ray if it is one. Errors: `ValueError`."""
    if value is not None and value.startswith("ray://"):
        raise ValueError(
            "must not be an address of Ray Client; give HOST:PORT of the head node as "
            "`ray start --head` prints it (port 6379), or auto on a node"
        )
    if value is not None and not re.fullmatch(r"auto|local|[^\s:/]+:[0-9]{1,5}", value):
        raise ValueError("must be auto, local or HOST:PORT")
    return value


class RaySettings(_Record):
    """Ray settings of a sweep; they override its `resources`.

    `max_failures`: how often a failed run is restarted.
    """

    address: Annotated[str | None, AfterValidator(check_address)] = None
    gpus_per_run: float | None = Field(None, ge=0, allow_inf_nan=False)
    cpus_per_run: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_concurrent: Int | None = Field(None, ge=1)
    max_failures: Int = Field(2, ge=0)


class EarlyStop(_Record):
    """The early-stopping rule. asha: after `grace_epochs`, and after each `reduction` times as
    many, runs that are not among the best 1/`reduction` stop. median: runs behind the median
    stop."""

    scheduler: Literal["asha", "median"]
    metric: str = "val/top1"
    grace_epochs: Int = Field(1, ge=1)
    reduction: float = Field(3.0, gt=1, allow_inf_nan=False)
    allow_biased: bool = False

    @property
    def mode(self) -> Literal["max", "min"]:
        """Return the direction of the metric."""
        return "min" if self.metric.endswith("nll") else "max"


KINDS = ("uniform", "loguniform", "choice")


class Search(_Record):
    """A search space: for each field {uniform: [LOW, HIGH]}, {loguniform: [LOW, HIGH]} or {choice:
    [...]}. Optuna proposes `round` rows at once and learns from their accuracy on val."""

    space: dict[str, dict[Literal["uniform", "loguniform", "choice"], list[Any]]] = Field(
        min_length=1
    )
    samples: Int = Field(ge=1, le=100_000)
    seed: Int = Field(0, ge=0, lt=2**31)
    method: Literal["random", "optuna"] = "random"
    round: Int = Field(8, ge=1)

    def axes(self) -> dict[str, tuple[str, list[Any]]]:
        """Return, for each field, the kind of its distribution and its bounds or choices."""
        return {name: next(iter(given.items())) for name, given in self.space.items()}


# Fields of `SweepSpec` that are no keys of the file.
NO_KEYS = ("file", "layers", "text", "changes", "request")

MOST_SEEDS = 10_000


def _seed_list(value: Any) -> Any:
    """Convert a number of seeds n to the list 0 to n-1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if not 1 <= value <= MOST_SEEDS:
        raise ValueError(f"must be a number of seeds from 1 to {MOST_SEEDS}, or a list of seeds")
    return list(range(value))


Seeds = Annotated[
    list[Annotated[Int, Field(ge=0, lt=2**31)]], BeforeValidator(_seed_list), Field(min_length=1)
]


# Words in braces that `notify:` may hold; the state is finished, failed or stopped.
PLACEHOLDER = r"(?<!\$)\{(\w+)\}"  # a shell's ${VARIABLE} is none
PLACEHOLDERS = ("sweep", "state", "runs", "finished", "failed")


def _known_placeholders(command: str) -> str:
    for name in re.findall(PLACEHOLDER, command):
        if name not in PLACEHOLDERS:
            raise ValueError(f"{{{name}}} is unknown; {nearest(name, PLACEHOLDERS)}")
    return command


class SeedList(_Record):
    """Seeds alone, to check those of a command line."""

    seeds: Seeds


class SweepSpec(_Record):
    """The content of a sweep file.

    `names` maps values of axes, as tables show them, to what they are called there. `layers` are
    the settings that every cell starts from, `text` is the file as it was read. A command line adds
    `changes`, the texts of its `--set`, and its resources as `request`.
    """

    name: Name
    description: str = ""
    fixed: Settings = {}
    grid: dict[str, list[Any]] = {}
    zip: Annotated[list[dict[str, list[Any]]], _Entries] = []
    include: Annotated[list[Settings], _Entries] = []
    exclude: Annotated[list[Exclusion], _Entries] = []
    seeds: Seeds = [0]
    baseline: Settings | None = None
    names: dict[str, Annotated[str, Field(min_length=1)]] = {}
    launcher: str = "local"  # checked against launch/launchers.py, which stands above this
    profile: str | None = Field(None, min_length=1)
    resources: SweepResources = SweepResources()
    ray: RaySettings = RaySettings()
    early_stop: EarlyStop | None = None
    notify: Annotated[str, AfterValidator(_known_placeholders)] | None = None
    search: Search | None = None
    file: Path
    layers: tuple[Layer, ...]
    text: str
    changes: tuple[str, ...] = ()
    request: Resources = Resources()

    def axes(self) -> list[str]:
        """Return the fields that the sweep varies, in file order."""
        named = [*self.grid, *(k for group in self.zip for k in group)]
        named += [k for extra in self.include for k in extra]
        named += self.search.space if self.search else []
        return list(dict.fromkeys(named))


def matches(where: Mapping[str, Any], config: RunConfig) -> bool:
    """Return True if every field has its wanted value; a field that does not apply matches nothing.

    A wanted text may be a pattern with * and ?, and a list matches any of its values.
    """
    return all(
        applies(name, config) and _equal(expected, getattr(config, name))
        for name, expected in where.items()
    )


def _equal(expected: Any, value: Any) -> bool:
    if isinstance(expected, list):
        return any(_equal(one, value) for one in expected)
    if isinstance(expected, str) and isinstance(value, str):
        return fnmatch.fnmatchcase(value, expected)
    # 1 and 1.0 are equal, 1 and true are not
    return isinstance(expected, bool) == isinstance(value, bool) and expected == value
