"""A cluster profile: what jobs on one cluster need, whatever the sweep.

Every value is checked here, so that nothing from a YAML file means something to a shell or opens a
line of a batch script; only `setup` and `python` are shell by intention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from densevit import yamlfile
from densevit.config import Int
from densevit.errors import UserError, nearest
from densevit.layers import explain
from densevit.sweep.spec import Resources

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:+=@/-]*$", max_length=200)]
# One line without control characters: what goes to a shell as the user wrote it.
# One that begins as sbatch's own lines do would be taken for one.
ShellLine = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]+$"),
    AfterValidator(lambda line: _no_option(line)),
]


def _no_option(line: str) -> str:
    if re.match(r"\s*#(SBATCH|PBS|BSUB)", line):
        raise ValueError("sbatch would obey it; what it takes goes to options")
    return line


def _joined(value: Any) -> Any:
    """A list of partitions, of which Slurm takes the one that is free first."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return ",".join(value)
    return value


Partitions = Annotated[
    str, BeforeValidator(_joined), Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,-]*$")
]
Features = Annotated[str, Field(pattern=r"^[A-Za-z0-9_(\[][A-Za-z0-9_.,|&*()\[\]:+-]*$")]
Nodes = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,\[\]-]*$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Requeue(_Record):
    """When a run that keeps losing its machine counts as failed. Preemption is always free."""

    timeouts: Int = Field(3, ge=1, description="time-outs in a row in which the step did not move")
    node_failures: Int = Field(5, ge=1, description="failures of nodes")


class Profile(_Record):
    """A cluster. `resources` are those of runs whose sweep says nothing else."""

    partition: Partitions | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Features | None = None
    exclude: Nodes | None = None
    # How GPUs are asked for: --gpus-per-node=TYPE:N or --gres=gpu:TYPE:N.
    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")] | None = None
    resources: Resources = Resources()
    setup: list[ShellLine] = []
    python: ShellLine | None = None
    throttle: Int = Field(256, ge=1)
    max_submitted: Int | None = Field(None, ge=1)
    signal_seconds: Int = Field(120, ge=1, le=3600)
    requeue: Requeue = Requeue()
    # Anything else that sbatch takes, as `reservation: maintenance`.
    options: dict[str, str | bool | Int] = {}
    file: str = Field("", exclude=True)


# sbatch's options that the launcher gives itself, or that a key of the profile stands for.
_OWN_OPTIONS = {
    "account", "array", "chdir", "cluster", "clusters", "constraint", "cpus-per-task", "error",
    "exclude", "export", "gpus-per-node", "gres", "hold", "input", "job-name", "mem", "no-requeue",
    "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos",
    "quiet", "requeue", "signal", "tasks", "tasks-per-node", "test-only", "time", "wait", "wrap",
}  # fmt: skip


def find_profile(name: str | None, sweep_file: Path) -> Profile:
    """The profile of a name or path; without one, that of a cluster whose defaults suffice.

    A path counts from the sweep file. A name is looked for as slurm/NAME.yaml in the folders above
    the sweep file, then above the current one.
    Errors: `UserError` naming the file, the key and the nearest valid name.
    """
    if name is None:
        return Profile()
    if not name.isprintable() or len(name) > 200:
        raise UserError(f"{sweep_file}: profile: {name[:60]!r} is neither a name nor a path")
    if "/" in name or name.endswith((".yaml", ".yml")):
        try:
            return read_profile((sweep_file.parent / Path(name).expanduser()).resolve())
        except (RuntimeError, ValueError) as error:  # no such user, a NUL
            raise UserError(f"{sweep_file}: profile: {name!r}: is no path: {error}") from None
    places = [sweep_file.absolute().parent, *sweep_file.absolute().parents]
    places += [Path.cwd(), *Path.cwd().parents]
    folders = list(dict.fromkeys(place / "slurm" for place in places))
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return read_profile(folder / f"{name}.yaml")
    there = [file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")]
    hint = nearest(name, there)
    raise UserError(f"{sweep_file}: profile: {name}: there is no slurm/{name}.yaml; {hint}")


def read_profile(path: Path) -> Profile:
    """Read and check a profile. Errors: `UserError` naming the file and the key."""
    data = yamlfile.load(path)
    if "file" in data:
        raise UserError(f"{path}: file: unknown key; {nearest('file', _keys())}")
    try:
        profile = Profile(**data, file=str(path))
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
        raise UserError(f"{path}: {_explain(problems[0])}") from None
    for name in profile.options:
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            raise UserError(f"{path}: options: {name!r} is no long option of sbatch")
        if any(own.startswith(name) for own in _OWN_OPTIONS):  # sbatch takes abbreviations
            raise UserError(
                f"{path}: options.{name}: is given by the launcher, or by a key of its own"
            )
    for name, value in profile.options.items():
        if isinstance(value, str) and not re.fullmatch(r"[^\x00-\x1f\x7f'\"`$\\]+", value):
            raise UserError(
                f"{path}: options.{name}: {value!r} is empty, or holds a quote, a $, a backslash "
                f"or a control character"
            )
    return profile


def _keys() -> list[str]:
    return [name for name in Profile.model_fields if name != "file"]


def _explain(problem: Mapping[str, Any]) -> str:
    where = [str(part) for part in problem["loc"]]
    if problem["type"] == "string_pattern_mismatch":
        key = ".".join(p for p in where if re.fullmatch(r"[a-z_]+|\d+", p))
        kind = {
            "setup": "a line of shell", "python": "a line of shell",
            "resources": "a number with K, M, G or T behind it",
        }.get(where[0], "a name as Slurm has them")  # fmt: skip
        return f"{key}: {problem['input']!r} must be {kind}"
    valid = {"resources": list(Resources.model_fields), "requeue": list(Requeue.model_fields)}
    told = explain(problem, valid.get(where[0], _keys()) if len(where) > 1 else _keys())
    told = told.replace("Value error, ", "")
    return told if told.isprintable() else repr(told)[1:-1]
