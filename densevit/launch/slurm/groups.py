"""Group runs by their resources into Slurm jobs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from densevit.launch.slurm.profile import Profile
from densevit.sweep.grid import Run
from densevit.utils.errors import UserError


@dataclass(frozen=True)
class Group:
    """Runs with equal resources; `tasks` holds the runs of each job."""

    resources: Mapping[str, Any]
    tasks: tuple[tuple[Run, ...], ...]


def groups(runs: Iterable[Run], profile: Profile) -> list[Group]:
    """Group runs by their resources, in the plan's order: by seed first.

    Errors: `UserError` for resources that Slurm cannot provide.
    """
    defaults = profile.resources.model_dump(exclude_none=True)
    found: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        request = {**defaults, **run.resources}
        found.setdefault(json.dumps(request, sort_keys=True), (request, []))[1].append(run)
    result = []
    for request, members in found.values():
        _check(request)
        size = request.get("pack", 1)
        tasks = (tuple(members[i : i + size]) for i in range(0, len(members), size))
        result.append(Group(request, tuple(tasks)))
    return result


def _check(request: Mapping[str, Any]) -> None:
    gpus, pack = request.get("gpus", 0), request.get("pack", 1)
    if gpus != int(gpus):
        raise UserError(
            f"resources.gpus: {gpus}: Slurm gives whole GPUs; gpus: 1 and pack: "
            f"{max(2, round(1 / (gpus % 1)))} lets several runs share one"
        )
    if pack > 1 and request.get("nodes", 1) > 1:
        raise UserError(
            f"resources.pack: {pack} runs share one node, but nodes is {request['nodes']}; set one "
            f"of them to 1"
        )
    if pack > 1 and gpus > 1 and pack % gpus:
        raise UserError(f"resources.pack: {pack} runs cannot share {gpus:g} GPUs evenly")
