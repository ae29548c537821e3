"""What has to be done so that the run directories hold what a plan wants; then doing it."""

from __future__ import annotations

from dataclasses import dataclass

from densevit.config import RunConfig
from densevit.data.sources import Data, check_fingerprint, open_data
from densevit.errors import UserError
from densevit.lifecycle import has_results
from densevit.rundir import read_json, write_atomic, write_json
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan, plan_record
from densevit.vit_names import image_size


@dataclass(frozen=True)
class Work:
    """A plan's runs: those to start, and those that are finished with all their benchmarks."""

    to_run: tuple[Run, ...]
    done: tuple[Run, ...]


def decide(plan: Plan) -> Work:
    """Sort the runs; reads run directories and changes nothing.

    Runs that failed, were cancelled, or lack a benchmark are started again and carry on from
    their checkpoint.
    """
    done = tuple(run for run in plan.runs if has_results(plan.run_folder(run), run.config))
    held = {run.id for run in done}
    return Work(tuple(run for run in plan.runs if run.id not in held), done)


def check(plan: Plan, work: Work) -> None:
    """Ask timm and the disk whether the runs can work, before anything is created.

    Errors: `UserError` for a model that cannot be built, missing or mismatched data, or files
    other than those that a run of the plan has seen.
    """
    file = str(plan.spec.file)
    if work.to_run:
        _check_models(work.to_run, file)
    opened: dict[str, Data | None] = {}
    for run in plan.runs:
        key = _data_key(run.config)
        if key not in opened:
            opened[key] = _open(run.config, file, needed=bool(work.to_run))
        data, folder = opened[key], plan.run_folder(run)
        held = read_json(folder.fingerprint_file)
        if held is not None and data is not None:
            check_fingerprint(held, data.fingerprint(), folder.path)


def prepare(plan: Plan, work: Work) -> None:
    """Create the run directories, and keep the sweep file and the plan in the sweep's folder."""
    for run in work.to_run:
        plan.run_folder(run).create(run.config)
    write_atomic(plan.folder / "sweep.yaml", plan.spec.file.read_text(encoding="utf-8"))
    write_json(plan.folder / "plan.json", plan_record(plan, plan.statuses()))


def _check_models(runs: tuple[Run, ...], file: str) -> None:
    from densevit.model import check_model  # imports torch: seconds
    from densevit.train import check_device

    for config in {run.cell: run.config for run in runs}.values():
        try:
            check_device(config)
            check_model(config)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None


def _open(config: RunConfig, file: str, needed: bool) -> Data | None:
    """The pictures of a run; None when they are gone and not needed: results outlive them."""
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
