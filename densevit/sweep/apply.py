"""What has to be done so that the run directories hold what a plan wants; then doing it."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from densevit import __version__
from densevit.config import RunConfig
from densevit.data.sources import Data, check_fingerprint, open_data
from densevit.errors import UserError
from densevit.lifecycle import git_state
from densevit.rundir import read_json, write_atomic, write_json
from densevit.sweep import search
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.record import plan_record
from densevit.sweep.state import STARTABLE, Observed, Standing
from densevit.vit_names import image_size

WRITERS = 16  # threads


@dataclass(frozen=True)
class Work:
    """A plan's runs: those to start, those that are finished with all their benchmarks, those that
    are running or queued, those of which nobody can say, which are left alone, and those that the
    sweep's rule for early stopping has ended.
    """

    to_run: tuple[Run, ...]
    done: tuple[Run, ...]
    active: tuple[Run, ...]
    unknown: tuple[Run, ...]
    stopped: tuple[Run, ...] = ()


def decide(plan: Plan, observed: Observed, launcher: str) -> Work:
    """Sort the runs by where they stand.

    Runs that failed, were cancelled, got lost or lack a benchmark are started again and carry on
    from their checkpoint, and so do those that another sweep has stopped early. The launchers local
    and ray wait for runs that another process is known to work on, and so take them as their own.
    """
    sorted_runs: dict[str, list[Run]] = {"to_run": [], "done": [], "active": [], "unknown": []}
    sorted_runs["stopped"] = []
    for run in plan.runs:
        standing = observed.runs[run.id]
        if standing.state == "finished":
            sorted_runs["done"].append(run)
        elif standing.state == "stopped" and _by_this_rule(plan, run):
            sorted_runs["stopped"].append(run)
        elif standing.state in STARTABLE or _awaited(standing, launcher):
            sorted_runs["to_run"].append(run)
        else:
            sorted_runs["unknown" if standing.state == "unknown" else "active"].append(run)
    return Work(**{name: tuple(runs) for name, runs in sorted_runs.items()})


def _by_this_rule(plan: Plan, run: Run) -> bool:
    """Whether it was the plan's own rule for early stopping, as it is now, that ended a run."""
    rule, held = plan.spec.early_stop, read_json(plan.run_folder(run).status_file) or {}
    return rule is not None and held.get("rule") == rule.model_dump(exclude={"allow_biased"})


def _awaited(standing: Standing, launcher: str) -> bool:
    return launcher in ("local", "ray") and standing.state == "running" and not standing.job


def check(plan: Plan, work: Work, *, here: bool = True) -> None:
    """Ask timm and the disk whether the runs can work, before anything is created.

    `here` says that they run on this machine; elsewhere there may be other devices, and data whose
    place only a job knows.
    Errors: `UserError` for a model that cannot be built, missing or mismatched data, or files
    other than those that a run of the plan has seen.
    """
    file = str(plan.spec.file)
    if work.to_run:
        _check_models(work.to_run, file, here)
    opened: dict[str, Data | None] = {}
    for run in plan.runs:
        key = _data_key(run.config)
        if key not in opened:
            opened[key] = _open(run.config, file, bool(work.to_run), here)
        data, folder = opened[key], plan.run_folder(run)
        held = read_json(folder.fingerprint_file)
        if held is not None and data is not None:
            check_fingerprint(held, data.fingerprint(), folder.path)


def prepare(plan: Plan, work: Work) -> None:
    """Create the run directories, and keep the sweep file and the plan in the sweep's folder."""
    with ThreadPoolExecutor(WRITERS) as pool:  # the disk is waited for side by side
        for _ in pool.map(lambda run: _ready(plan, run), work.to_run):
            pass
    for run in work.done:
        if run.config.log_model:  # which the mirror reads there, also when it is wished for later
            plan.run_folder(run).create(run.config)
    write_atomic(plan.folder / "sweep.yaml", plan.spec.file.read_text(encoding="utf-8"))
    record = plan_record(plan, plan.statuses())
    record |= {"begun": _begun(plan), "git_sha": git_state()["git_sha"]}
    write_json(plan.folder / "plan.json", record)
    found = search.record(plan.spec)
    if found is not None:
        write_json(search.record_file(plan.spec, plan.outputs), found)


def _begun(plan: Plan) -> float:
    """When the sweep was first prepared in this folder, in Unix seconds."""
    try:
        held = read_json(plan.folder / "plan.json") or {}
    except UserError:
        held = {}
    return held.get("begun") or time.time()


def _ready(plan: Plan, run: Run) -> None:
    folder = plan.run_folder(run)
    folder.create(run.config)
    if not folder.locked():  # else the wish is about what goes on
        folder.stop_file.unlink(missing_ok=True)


def _check_models(runs: tuple[Run, ...], file: str, here: bool) -> None:
    """Build each model without weights, or know from before that it can be built."""
    known = _known_models()
    models = {_model_key(run.config): run.config for run in runs}
    unknown = {key: config for key, config in models.items() if key not in known}
    if here and any(run.config.device == "cuda" for run in runs):
        unknown = models
    if not unknown:
        return
    from densevit.model import check_model  # imports torch: seconds
    from densevit.train import check_device

    for config in unknown.values():
        try:
            if here:
                check_device(config)
            check_model(config)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
    with suppress(OSError):  # it only saves time
        write_json(_known_models_file(), dict.fromkeys({**known, **unknown}, True))


def _model_key(config: RunConfig) -> str:
    """What decides whether a model can be built, as a digest."""
    fields = ("model_name", "model_kwargs", "drop_path", "sampled_patches", "query_patches")
    fields += ("cl_mode", "dense_negatives", "lambda_weight")  # which say what applies
    text = repr([_versions(), __version__, *(getattr(config, name) for name in fields)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _versions() -> list[str]:
    return [metadata.version(name) for name in ("timm", "torch")]


def _known_models_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "densevit" / "models.json"


def _known_models() -> dict[str, Any]:
    try:
        return read_json(_known_models_file()) or {}
    except UserError:
        return {}


def _open(config: RunConfig, file: str, needed: bool, here: bool) -> Data | None:
    """The pictures of a run; None when they are gone and not needed: results outlive them.

    Also None where a variable in their path has its value in a job only.
    """
    sets = [s if isinstance(s, str) else (s and s.path) or "" for s in config.benchmarks.values()]
    paths = [config.data_dir or "", *sets]
    if not here and any("$" in os.path.expandvars(path) for path in paths):
        return None
    try:
        return open_data(config, _input_size(config))
    except UserError as error:
        if needed:
            raise UserError(f"{file}: {error}") from None
        return None


def _input_size(config: RunConfig) -> int:
    """What the name tells, else what timm says: for that it must be imported."""
    told = image_size(config)
    if told is None:
        from densevit.model import check_model

        told = check_model(config)
    return told


def _data_key(config: RunConfig) -> str:
    model = (config.model_name, config.model_kwargs)  # which say the size of the pictures
    return repr((config.dataset, config.data_dir, config.benchmarks, config.batch_size, *model))
