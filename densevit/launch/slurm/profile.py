"""A cluster profile: what jobs on one cluster need, whatever the sweep.

Every value is checked here, so that no value of a YAML file is special to a shell or starts a line
of a batch script; only `setup` and `python` are shell code by intention.
"""

from __future__ import annotations

import os
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
    ValidationError,
    model_validator,
)

from densevit.config import yaml_file
from densevit.config.error_messages import explain
from densevit.config.record import drop_empty
from densevit.config.run_config import Int
from densevit.launch.launcher import LaunchOptions
from densevit.launch.slurm import commands
from densevit.sweep.plan import Plan
from densevit.sweep.spec import Resources
from densevit.utils.errors import UserError, nearest

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:+=@/-]*$", max_length=200)]
# One line of shell code without control characters, passed on as the user wrote it.
# sbatch would obey one that begins like its own lines.
ShellLine = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]+$"),
    AfterValidator(lambda line: _no_option(line)),
]


def _no_option(line: str) -> str:
    if re.match(r"\s*#(SBATCH|PBS|BSUB)", line):
        raise ValueError("#SBATCH lines are not allowed here; use options")
    return line


def _joined(value: Any) -> Any:
    """Join a list of partitions; Slurm takes the one that is free first."""
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
    _drop_empty = model_validator(mode="before")(drop_empty)


class Requeue(_Record):
    """The limits after which a run that keeps losing its node has failed; preemption is free."""

    timeouts: Int = Field(3, ge=1, description="consecutive time-outs without progress")
    node_failures: Int = Field(5, ge=1, description="failures of nodes")


# No comma or colon, which separate mounts, and nothing that a batch script could misread.
Place = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f,:]*$", max_length=1000)]


class Container(_Record):
    """The image in which runs execute; it needs Python and the packages of DenseViT."""

    image: Annotated[str, Field(pattern=r"^[^\x00-\x20\x7f]+$", max_length=1000)] = Field(
        description="a file, or an address such as docker://host/name:tag"
    )
    runtime: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    mounts: list[Place] = Field([], description="folders it needs besides the outputs: the data")


class Profile(_Record):
    """A cluster. `resources` are the defaults of its runs; a sweep may override them."""

    partition: Partitions | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Features | None = None
    exclude: Nodes | None = None
    # How GPUs are requested: --gpus-per-node=TYPE:N or --gres=gpu:TYPE:N.
    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")] | None = None
    resources: Resources = Resources()
    setup: list[ShellLine] = []
    python: ShellLine | None = None
    container: Container | None = None
    throttle: Int = Field(256, ge=1)
    max_submitted: Int | None = Field(None, ge=1)
    signal_seconds: Int = Field(120, ge=1, le=3600)
    requeue: Requeue = Requeue()
    # Other options of sbatch, e.g. `reservation: maintenance`.
    options: dict[str, str | bool | Int] = {}
    file: str = Field("", exclude=True)


# Options of sbatch that the launcher sets itself, or that have a key in the profile.
_OWN_OPTIONS = {
    "account", "array", "chdir", "cluster", "clusters", "constraint", "cpus-per-task", "error",
    "exclude", "export", "gpus-per-node", "gres", "hold", "input", "job-name", "mem", "no-requeue",
    "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos",
    "quiet", "requeue", "signal", "tasks", "tasks-per-node", "test-only", "time", "wait", "wrap",
}  # fmt: skip


def find_profile(name: str | None, sweep_file: Path) -> Profile:
    """Return the profile of a name or path; without one, an empty profile.

    A path is relative to the sweep file. A name is looked up as slurm/NAME.yaml in the folders
    above the sweep file, then in those above the current one.
    Errors: `UserError` naming the file, the key and the nearest valid name.
    """
    if name is None:
        return Profile()
    if not name.isprintable() or len(name) > 200:
        raise UserError(f"{sweep_file}: profile: {name[:60]!r} is neither a name nor a path")
    if "/" in name or name.endswith((".yaml", ".yml")):
        try:
            path = Path(os.path.expandvars(name)).expanduser()
            return read_profile((sweep_file.parent / path).resolve())
        except (RuntimeError, ValueError) as error:  # no such user, a NUL
            raise UserError(f"{sweep_file}: profile: {name!r}: is no path: {error}") from None
    places = [sweep_file.absolute().parent, *sweep_file.absolute().parents]
    places += [Path.cwd(), *Path.cwd().parents]
    folders = list(dict.fromkeys(place / "slurm" for place in places))
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            _check_owner(folder / f"{name}.yaml", sweep_file)
            return read_profile(folder / f"{name}.yaml")
    there = [file.stem for folder in folders if folder.is_dir() for file in folder.glob("*.yaml")]
    hint = nearest(name, there)
    raise UserError(f"{sweep_file}: profile: {name}: there is no slurm/{name}.yaml; {hint}")


def _check_owner(profile: Path, sweep_file: Path) -> None:
    """Refuse a profile that a third user may have put in a folder above, as `setup` is a program.

    Errors: `UserError` with the way out.
    """
    trusted = {0, os.getuid()} | {f.stat().st_uid for f in (sweep_file,) if f.exists()}
    if profile.stat().st_uid not in trusted:
        raise UserError(
            f"{sweep_file}: profile: {profile} belongs to another user, and its setup would run as "
            f"you; if you trust it, give its path instead of its name"
        )


def usable_profile(plan: Plan, options: LaunchOptions) -> Profile:
    """Return the profile of a flag or of the sweep file, for use on this machine.

    Errors: `UserError` for a wrong profile, or if Slurm's commands are missing.
    """
    profile = find_profile(options.profile or plan.spec.profile, plan.spec.file)
    commands.require()
    return profile


def read_profile(path: Path) -> Profile:
    """Read and check a profile. Errors: `UserError` naming the file and the key."""
    data = yaml_file.load(path)
    if "file" in data:
        raise UserError(f"{path}: file: unknown key; {nearest('file', _keys())}")
    try:
        profile = Profile(**data, file=str(path))
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
        raise UserError(f"{path}: {_explain(problems[0])}") from None
    profile = _with_image(profile, path)
    for name in profile.options:
        if not re.fullmatch(r"[a-z][a-z-]*", name):
            raise UserError(f"{path}: options: {name!r} is not a long option of sbatch")
        if any(own.startswith(name) for own in _OWN_OPTIONS):  # sbatch accepts abbreviations
            raise UserError(
                f"{path}: options.{name}: is set by the launcher, or by a key of its own in the "
                f"profile"
            )
    for name, value in profile.options.items():
        if isinstance(value, str) and not re.fullmatch(r"[^\x00-\x1f\x7f'\"`$\\]+", value):
            raise UserError(
                f"{path}: options.{name}: {value!r} is empty, or holds a quote, a $, a backslash "
                f"or a control character"
            )
    return profile


def _with_image(profile: Profile, path: Path) -> Profile:
    """Make the path of an image absolute; pyxis has names of its own. Errors: `UserError`."""
    container = profile.container
    if container is None or container.runtime == "pyxis" or "://" in container.image:
        return profile
    image = (path.parent / Path(container.image).expanduser()).resolve()
    if not image.exists():
        raise UserError(f"{path}: container.image: {image}: no such file")
    return profile.model_copy(
        update={"container": container.model_copy(update={"image": str(image)})}
    )


def _keys() -> list[str]:
    return [name for name in Profile.model_fields if name != "file"]


def _explain(problem: Mapping[str, Any]) -> str:
    where = [str(part) for part in problem["loc"]]
    if problem["type"] == "string_pattern_mismatch":
        key = ".".join(p for p in where if re.fullmatch(r"[a-z_]+|\d+", p))
        kind = {
            "setup": "a line of shell", "python": "a line of shell",
            "resources": "a number with K, M, G or T behind it",
            "container": "an image, or absolute paths without commas and colons",
        }.get(where[0], "a name as Slurm has them")  # fmt: skip
        return f"{key}: {problem['input']!r} must be {kind}"
    parts: dict[str, type[BaseModel]] = {
        "resources": Resources,
        "requeue": Requeue,
        "container": Container,
    }
    valid = {name: list(part.model_fields) for name, part in parts.items()}
    message = explain(problem, valid.get(where[0], _keys()) if len(where) > 1 else _keys())
    return message if message.isprintable() else repr(message)[1:-1]
