"""`densevit eval`: a network on benchmarks, after training or without any.

What is evaluated is a run, a checkpoint of one, a file of weights or a model that timm has. Numbers
can also be computed again from the predictions alone, without network and pictures.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.commandline import add_outputs, find_run, positive
from densevit.config import NAME_PATTERN, PROBES
from densevit.data.names import benchmark_names
from densevit.errors import UserError
from densevit.rundir import RunFolder, outputs_root, read_json, write_json

if TYPE_CHECKING:
    from densevit.data.benchmarks import TestSet
    from densevit.named import Named


def add_eval(commands: Any) -> None:
    command = commands.add_parser(
        "eval",
        help="evaluate a run, a checkpoint or a timm model on benchmarks",
        description="Evaluate a network on benchmarks: a known NAME (imagenet-a, ...) or one of "
        "your own, NAME=PATH; without a path it lies in $DENSEVIT_DATA/NAME. Several GPUs: "
        "torchrun --nproc-per-node N -m densevit eval ...",
    )
    command.set_defaults(call=_eval)
    command.add_argument("target", metavar="TARGET", help="a run (its id or directory), a "
                         "checkpoint, a file of weights, or the name of a timm model")  # fmt: skip
    command.add_argument("benchmarks", metavar="NAME[=PATH]", nargs="*",
                         help="default, of a run: its own")  # fmt: skip
    command.add_argument("--classes", metavar="HOW", help="what the class folders of your own "
                         "benchmarks are called: folder, imagenet, or a FILE")  # fmt: skip
    command.add_argument("--model-name", metavar="NAME", help="of a file that does not say it")
    command.add_argument("--to", metavar="DIR", help="default: the run's directory, else "
                         "OUTPUTS/evals/NAME")  # fmt: skip
    command.add_argument("--from-predictions", action="store_true",
                         help="compute the numbers again from the stored predictions")  # fmt: skip
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    command.add_argument("--batch-size", type=positive, default=256, metavar="N",
                         help="on each device (default: 256)")  # fmt: skip
    command.add_argument("--workers", type=int, default=4, metavar="N", help="(default: 4)")
    add_outputs(command)


def _eval(options: argparse.Namespace) -> int:
    outputs = outputs_root(options.outputs)
    run = find_run(options.target, outputs)
    if options.from_predictions:
        if options.benchmarks:
            raise UserError(f"{options.benchmarks[0]}: --from-predictions takes all that are there")
        folder = RunFolder(Path(options.to or (run.path if run else options.target)).absolute())
        _print(recompute(folder))
        return 0
    if options.workers < 0:
        raise UserError(f"--workers: {options.workers} must be at least 0")
    from densevit.named import open_named

    named = open_named(options.target, run, options.model_name)
    target = RunFolder(_target(options, run, named, outputs))
    held = (read_json(target.results_file) or {}).get("model", named.source)
    if held != named.source:
        raise UserError(f"{target.path}: holds numbers of {held}; give --to another folder")
    sets = _test_sets(options, run, named)
    _refuse_damaged(sets)
    return _evaluate(options, named, sets, target)


def _refuse_damaged(sets: Sequence[TestSet]) -> None:
    from densevit.data.doctor import quick_problems

    for asked in sets:
        found = quick_problems(asked)
        if found:
            raise UserError(f"{asked.name}: {found[0]}")


def _target(
    options: argparse.Namespace, run: RunFolder | None, named: Named, outputs: Path
) -> Path:
    if options.to:
        return Path(options.to).absolute()
    if run is None:
        return outputs / "evals" / named.name
    if not run.results_file.exists():
        raise UserError(
            f"{options.target}: is not finished: its results will come by themselves; to evaluate "
            f"its newest checkpoint now, give --to DIR"
        )
    return run.path


def _test_sets(options: argparse.Namespace, run: RunFolder | None, named: Named) -> list[TestSet]:
    from densevit.data.benchmarks import open_benchmark
    from densevit.data.layouts import LAYOUTS

    if not options.benchmarks:
        if run is None:
            raise UserError(
                f"{options.target}: on which benchmarks? give NAME or NAME=PATH, of "
                f"{', '.join(LAYOUTS)} or your own"
            )
        from densevit.data.sources import check_fingerprint, open_data

        data = open_data(run.config(), named.image_size)
        if tuple(data.train.classes) != named.classes:
            raise UserError(f"{options.target}: the classes of its pictures have changed since")
        held = read_json(run.fingerprint_file)
        if held is not None:
            check_fingerprint(held, data.fingerprint(), run.path)
        return [data.val, *data.benchmarks.values()]
    sets = []
    for given in options.benchmarks:
        name, _, path = given.partition("=")
        if not re.match(NAME_PATTERN, name) or name in ("train", *PROBES):
            raise UserError(f"{given}: wanted NAME or NAME=PATH; a name has letters, digits, . _ -")
        if name in [other.name for other in sets]:
            raise UserError(f"{given}: {name} is given twice")
        if path and run is not None and not options.to and name in benchmark_names(run.config()):
            raise UserError(
                f"{given}: {name} is one of the run's own sets; give another name, or --to DIR"
            )
        record = {"path": path or None, "classes": options.classes if name not in LAYOUTS else None}
        sets.append(open_benchmark(name, record, named.classes, name))
    return sets


def _evaluate(
    options: argparse.Namespace, named: Named, sets: Sequence[TestSet], target: RunFolder
) -> int:
    import torch

    from densevit.data.views import plain_view
    from densevit.distributed import joined
    from densevit.evaluate import predict_together
    from densevit.predictions import check_finite, write_answers
    from densevit.scores import score

    gpu = options.device != "cpu" and torch.cuda.is_available()
    if options.device == "cuda" and not gpu:
        raise UserError("--device: cuda: torch sees no GPU here")
    with joined("cuda" if gpu else "cpu") as world:
        here = world.local_rank % torch.cuda.device_count() if gpu else 0
        device = torch.device("cuda", here) if gpu else torch.device("cpu")
        model = named.model.to(device)
        view = plain_view(named.image_size, **named.pictures)
        for asked in sets:
            answers = predict_together(
                model, asked, view, device, world,
                batch_size=options.batch_size, workers=options.workers,
            ).answers(asked)  # fmt: skip
            check_finite(answers)
            if not world.writes:
                continue
            write_answers(answers, target.predictions_file(asked.name))
            found = {asked.name: score(answers)}
            # After each, so that what is interrupted has lost one benchmark at most.
            _merge(target, found, named.source)
            _print(found)
    if world.writes:
        print(f"predictions and results.json in {target.path}")
    return 0


def recompute(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """The numbers of all predictions in a folder, computed from them alone, into results.json.

    Errors: `UserError` if there are none, or one cannot be read.
    """
    from densevit.predictions import read_answers
    from densevit.scores import score

    files = sorted((folder.path / "predictions").glob("*.parquet"))
    if not files:
        raise UserError(f"{folder.path}: holds no predictions/*.parquet")
    found = {file.stem: score(read_answers(file)) for file in files}
    _merge(folder, found, folder.path.name)
    return found


def _merge(folder: RunFolder, found: dict[str, dict[str, Any]], name: str) -> None:
    results = read_json(folder.results_file) or {"model": name, "benchmarks": {}}
    if not isinstance(results.get("benchmarks"), dict):
        raise UserError(f"{folder.results_file}: holds no results")
    results["benchmarks"] = {**results["benchmarks"], **found}
    write_json(folder.results_file, results)


# What is printed beside the usual numbers, where a benchmark has it.
_SHOWN = {
    "top1_all": "top-1 among all classes",
    "real_top1": "reassessed labels",
    "top1_imagenet-a": "on ImageNet-A's classes",
    "top1_imagenet-r": "on ImageNet-R's classes",
    "mce": "mCE",
    "shape_bias": "shape bias",
}


def _print(found: dict[str, dict[str, Any]]) -> None:
    for name, numbers in found.items():
        more = [f"{word} {numbers[key]:.2f}" for key, word in _SHOWN.items() if key in numbers]
        print(
            f"{name}: top-1 {numbers['top1']:.2f} % [{numbers['top1_low']:.2f}, "
            f"{numbers['top1_high']:.2f}] among {numbers['ways']} classes, top-5 "
            f"{numbers['top5']:.2f} %, ECE {numbers['ece']:.2f} %, NLL {numbers['nll']:.3f}, "
            f"{numbers['n']} pictures" + "".join(f"; {each}" for each in more),
            flush=True,
        )
