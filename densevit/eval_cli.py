"""`densevit eval`: a network on benchmarks, after training or without any.

What is evaluated is a run, a checkpoint of one, a file of weights or a model that timm has. Numbers
can also be computed again from the predictions alone, without network and pictures.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.commandline import add_outputs, find_run, positive
from densevit.config import PROBES
from densevit.data.names import CLEAN
from densevit.errors import UserError
from densevit.rundir import RunFolder, outputs_root, read_json, write_json

if TYPE_CHECKING:
    from densevit.asked import Asked
    from densevit.data.benchmarks import TestSet
    from densevit.distributed import World
    from densevit.frozen.store import Means
    from densevit.named import Named
    from densevit.predictions import Answers, Areas
    from densevit.probes import Probing


def add_eval(commands: Any) -> None:
    command = commands.add_parser(
        "eval",
        help="evaluate a run, a checkpoint or a timm model on benchmarks",
        description="Evaluate a network on benchmarks: a known NAME (imagenet-a, ...) or one of "
        "your own, NAME=PATH; without a path it lies in $DENSEVIT_DATA/NAME. Or by probes of its "
        "frozen features (knn, linear-probe, dense-probe, ...), PATH holding train/ and val/; "
        "without one those of the run, else $DENSEVIT_DATA/imagenet. Several GPUs: "
        "torchrun --nproc-per-node N -m densevit eval ...",
    )
    command.set_defaults(call=_eval)
    command.add_argument("target", metavar="TARGET", help="a run (its id or directory), a "
                         "checkpoint, a file of weights, or the name of a timm model")  # fmt: skip
    command.add_argument("benchmarks", metavar="NAME[=PATH]", nargs="*",
                         help="default, of a run: its own sets and probes")  # fmt: skip
    command.add_argument("--classes", metavar="HOW", help="what the class folders of your own "
                         "benchmarks are called: folder, imagenet, or a FILE")  # fmt: skip
    command.add_argument("--model-name", metavar="NAME", help="of a file that does not say it")
    command.add_argument("--to", metavar="DIR", help="default: the run's directory, else "
                         "OUTPUTS/evals/NAME")  # fmt: skip
    command.add_argument("--from-predictions", action="store_true",
                         help="compute the numbers again from the stored predictions")  # fmt: skip
    command.add_argument("--keep-features", action="store_true",
                         help="of the probes, in DIR/features, for the next command")  # fmt: skip
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
    from densevit.asked import asked_for
    from densevit.named import open_named

    named = open_named(options.target, run, options.model_name)
    target = RunFolder(_target(options, run, named, outputs))
    held = (read_json(target.results_file) or {}).get("model", named.source)
    if held != named.source:
        raise UserError(f"{target.path}: holds numbers of {held}; give --to another folder")
    asked = asked_for(options.benchmarks, run, named, options.classes, bool(options.to))
    _refuse_damaged(asked.sets)
    return _evaluate(options, named, asked, target)


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


def _evaluate(options: argparse.Namespace, named: Named, asked: Asked, target: RunFolder) -> int:
    from densevit.answering import clean_answers
    from densevit.distributed import joined
    from densevit.scores import score

    gpu = _on_gpu(options)
    with joined("cuda" if gpu else "cpu") as world:
        means = _means(options, gpu, world)
        named.model.to(means.device)
        for name, answers in _answers(options, named, asked, target, means):
            if not world.writes:
                continue
            clean = None if name in (*CLEAN, *PROBES) else clean_answers(target)
            found = {name: score(answers, clean)}
            # After each, so that what is interrupted has lost one benchmark at most.
            _merge(target, found, named.source)
            _print(found)
        if world.writes and not options.keep_features:
            shutil.rmtree(target.features_folder, ignore_errors=True)
    if world.writes:
        print(f"predictions and results.json in {target.path}")
    return 0


def _on_gpu(options: argparse.Namespace) -> bool:
    import torch

    gpu = options.device != "cpu" and torch.cuda.is_available()
    if options.device == "cuda" and not gpu:
        raise UserError("--device: cuda: torch sees no GPU here")
    return gpu


def _means(options: argparse.Namespace, gpu: bool, world: World) -> Means:
    import torch

    from densevit.frozen.store import Means

    here = world.local_rank % torch.cuda.device_count() if gpu else 0
    device = torch.device("cuda", here) if gpu else torch.device("cpu")
    return Means(device, world, options.batch_size, options.workers)


def _answers(
    options: argparse.Namespace, named: Named, asked: Asked, target: RunFolder, means: Means
) -> Iterator[tuple[str, Answers | Areas]]:
    """The answers to each test set and probe, whose files are written before."""
    from densevit.answering import answered
    from densevit.data.views import plain_view
    from densevit.evaluate import predict_together
    from densevit.predictions import write_answers
    from densevit.probes import probe

    view = plain_view(named.image_size, **named.pictures)
    for each in asked.sets:

        def ask(chosen: range, each: TestSet = each) -> Answers:
            return predict_together(
                named.model, each, view, means.device, means.world,
                batch_size=means.batch_size, workers=means.workers, chosen=chosen,
            ).answers(each)  # fmt: skip

        path = target.predictions_file(each.name)
        yield each.name, answered(ask, each, path, named.source, means.world)
    probing = _probing(named, asked, target, means) if asked.probes else None
    for name in asked.probes:
        answers = probe(name, probing)
        if means.world.writes:
            write_answers(answers, target.predictions_file(name), named.source)
        yield name, answers


def _probing(named: Named, asked: Asked, target: RunFolder, means: Means) -> Probing:
    from densevit.model import DenseViT, TimmTokens
    from densevit.probes import Probing, both_wanted

    ours = isinstance(named.model, DenseViT)
    model = named.model if ours else TimmTokens(named.model)
    return Probing(
        model, named.image_size, named.pictures, model.grid, means, asked.splits, asked.masked,
        both=both_wanted(asked.probes), source=named.source, kept=target.features_folder,
        seed=asked.seed,
    )  # fmt: skip


def recompute(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """The numbers of all predictions in a folder, computed from them alone, into results.json.

    Errors: `UserError` if there are none, or one cannot be read.
    """
    from densevit.answering import clean_answers
    from densevit.predictions import read_answers, source_of
    from densevit.scores import score

    files = sorted((folder.path / "predictions").glob("*.parquet"))
    if not files:
        raise UserError(f"{folder.path}: holds no predictions/*.parquet")
    clean = clean_answers(folder)
    found = {
        file.stem: score(read_answers(file), None if file.stem in (*CLEAN, *PROBES) else clean)
        for file in files
    }
    _merge(folder, found, source_of(files[0]) or folder.path.name)
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
    "matched_clean": "clean in the same mix of classes",
    "top1_imagenet-a": "on ImageNet-A's classes",
    "top1_imagenet-r": "on ImageNet-R's classes",
    "mce": "mCE",
    "shape_bias": "shape bias",
}


def _print(found: dict[str, dict[str, Any]]) -> None:
    for name, numbers in found.items():
        if "miou" in numbers:
            print(
                f"{name}: mIoU {numbers['miou']:.2f} % [{numbers['miou_low']:.2f}, "
                f"{numbers['miou_high']:.2f}], {numbers['pixel_accuracy']:.2f} % of the pixels, "
                f"{numbers['n']} pictures",
                flush=True,
            )
            continue
        more = [f"{word} {numbers[key]:.2f}" for key, word in _SHOWN.items() if key in numbers]
        print(
            f"{name}: top-1 {numbers['top1']:.2f} % [{numbers['top1_low']:.2f}, "
            f"{numbers['top1_high']:.2f}] among {numbers['ways']} classes, top-5 "
            f"{numbers['top5']:.2f} %, ECE {numbers['ece']:.2f} %, NLL {numbers['nll']:.3f}, "
            f"{numbers['n']} pictures" + "".join(f"; {each}" for each in more),
            flush=True,
        )
