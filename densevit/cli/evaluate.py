"""`densevit eval`: evaluate a network on benchmarks.

The network is a run, a checkpoint of a run, a file of weights, or a model that timm has. Metrics
can also be recomputed from the stored predictions, without the network and the images.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.cli.parser import add_outputs, find_run, positive
from densevit.config.metrics import MULTILABEL
from densevit.config.probes import metrics_of
from densevit.evaluate.recompute import compute_metrics, merge_metrics, recompute
from densevit.runs.directory import RunFolder, outputs_root
from densevit.utils.cache import use_writable_cache
from densevit.utils.console import say, warn
from densevit.utils.errors import UserError
from densevit.utils.files import write_json

if TYPE_CHECKING:
    from densevit.data.test_set import TestSet
    from densevit.evaluate.accuracy import Numbers
    from densevit.evaluate.predictions import ImagePredictions, Predictions
    from densevit.evaluate.probes.feature_store import Resources
    from densevit.evaluate.probes.run import ProbedNetwork
    from densevit.evaluate.targets import EvalRequest
    from densevit.models.load import LoadedModel
    from densevit.utils.distributed import World


def add_eval(commands: Any) -> None:
    command = commands.add_parser(
        "eval",
        help="evaluate a run, a checkpoint or a timm model on benchmarks",
        description="Evaluate a network on benchmarks: a known NAME (imagenet-a, ...) or one of "
        "your own, NAME=PATH; the default path is $DENSEVIT_DATA/NAME. Or by probes of its "
        "frozen features (knn, linear-probe, dense-probe, ...); their PATH holds train/ and val/ "
        "(default: the run's own, else $DENSEVIT_DATA/imagenet). On several GPUs: "
        "torchrun --nproc-per-node N -m densevit eval ...",
    )
    command.set_defaults(call=_eval)
    command.add_argument("target", metavar="TARGET", help="a run (its id or directory), a "
                         "checkpoint, a file of weights, or the name of a timm model")  # fmt: skip
    command.add_argument("benchmarks", metavar="NAME[=PATH]", nargs="*",
                         help="default for a run: its own test sets and probes")  # fmt: skip
    command.add_argument("--classes", metavar="HOW", help="how the class folders of your own "
                         "benchmarks are named: folder, imagenet, or a FILE")  # fmt: skip
    command.add_argument("--label-column", metavar="NAME", help="the labels of a Hugging Face data "
                         "set with several columns of them")  # fmt: skip
    command.add_argument("--void", type=int, nargs="*", metavar="N", help="values of the masks of "
                         "dense-probe=PATH that are no class (default: 255)")  # fmt: skip
    command.add_argument(
        "--model-name", metavar="NAME", help="timm model of a file that does not name it"
    )
    command.add_argument("--to", metavar="DIR", help="default: the run's directory, else "
                         "OUTPUTS/evals/NAME")  # fmt: skip
    command.add_argument("--from-predictions", action="store_true",
                         help="recompute the metrics from the stored predictions")  # fmt: skip
    command.add_argument("--keep-features", action="store_true",
                         help="keep features in DIR/features for the next command")  # fmt: skip
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    command.add_argument("--batch-size", type=positive, default=256, metavar="N",
                         help="images per device (default: 256)")  # fmt: skip
    command.add_argument("--workers", type=int, default=4, metavar="N", help="(default: 4)")
    add_outputs(command)


def _eval(options: argparse.Namespace) -> int:
    outputs = outputs_root(options.outputs)
    use_writable_cache(outputs)
    run = find_run(options.target, outputs)
    if options.from_predictions:
        if options.benchmarks:
            raise UserError(
                f"{options.benchmarks[0]}: --from-predictions recomputes all stored benchmarks; "
                f"name none"
            )
        folder = RunFolder(Path(options.to or (run.path if run else options.target)).absolute())
        _print(recompute(folder))
        return 0
    if options.workers < 0:
        raise UserError(f"--workers: {options.workers} must be at least 0")
    from densevit.evaluate.targets import GivenData, resolve_targets
    from densevit.models.load import load_model

    network = load_model(options.target, run, options.model_name)
    target = RunFolder(_target(options, run, network, outputs))
    results = target.results()
    evaluated = network.source if results is None else results.get("model", network.source)
    if evaluated != network.source:
        raise UserError(f"{target.path}: holds results of {evaluated}; give --to another folder")
    if not all(0 <= value <= 255 for value in options.void or ()):
        raise UserError(f"--void: {options.void}: must be values from 0 to 255")
    given = GivenData(options.classes, options.label_column, options.void)
    request = resolve_targets(options.benchmarks, run, network, given, bool(options.to))
    _refuse_damaged(request.test_sets)
    return _evaluate(options, network, request, target)


def _refuse_damaged(test_sets: Sequence[TestSet]) -> None:
    from densevit.data.check_contents import check_intact
    from densevit.data.image_files import skipped_lines

    for test_set in test_sets:
        check_intact(test_set.name, test_set.images)
        lines = [*skipped_lines(getattr(test_set.images, "skipped", ())), *test_set.notes()]
        for line in lines:
            warn(f"{test_set.name}: {line}")


def _target(
    options: argparse.Namespace, run: RunFolder | None, network: LoadedModel, outputs: Path
) -> Path:
    if options.to:
        return Path(options.to).absolute()
    if run is None:
        return outputs / "evals" / network.name
    if not run.results_file.exists():
        raise UserError(
            f"{options.target}: is not finished; a run evaluates itself at its end. To evaluate "
            f"its newest checkpoint now, give --to DIR"
        )
    return run.path


def _evaluate(
    options: argparse.Namespace, network: LoadedModel, request: EvalRequest, target: RunFolder
) -> int:
    from densevit.utils.distributed import process_group

    gpu = _on_gpu(options)
    with process_group("cuda" if gpu else "cpu") as world:
        resources = _resources(options, gpu, world)
        network.model.to(resources.device)
        for name, predictions in _predictions(network, request, target, resources):
            if not world.writes:
                continue
            metrics = {name: compute_metrics(target, predictions)}
            # After each benchmark: an interruption loses one at most.
            merge_metrics(target, metrics, network.source)
            _record_images(target, name, request.test_sets)
            _print(metrics)
        if world.writes and not options.keep_features:
            shutil.rmtree(target.features_folder, ignore_errors=True)
    if world.writes:
        say(f"predictions and results.json in {target.path}")
    return 0


def _record_images(target: RunFolder, name: str, test_sets: Sequence[TestSet]) -> None:
    """Record which images a number was measured on: a sweep may name others by the same name."""
    from densevit.data.fingerprint import fingerprint

    record = target.fingerprint() or {}
    benchmarks = record.setdefault("benchmarks", {})
    for test_set in test_sets:
        if test_set.name == name and name not in record:  # train and val are there
            benchmarks[name] = fingerprint(test_set)
            write_json(target.fingerprint_file, record)


def _on_gpu(options: argparse.Namespace) -> bool:
    import torch

    gpu = options.device != "cpu" and torch.cuda.is_available()
    if options.device == "cuda" and not gpu:
        raise UserError("--device: cuda: torch sees no GPU here")
    return gpu


def _resources(options: argparse.Namespace, gpu: bool, world: World) -> Resources:
    import torch

    from densevit.evaluate.probes.feature_store import Resources

    here = world.local_rank % torch.cuda.device_count() if gpu else 0
    device = torch.device("cuda", here) if gpu else torch.device("cpu")
    return Resources(device, world, options.batch_size, options.workers)


def _predictions(
    network: LoadedModel, request: EvalRequest, target: RunFolder, resources: Resources
) -> Iterator[tuple[str, Predictions]]:
    """Yield the name and predictions of each test set and probe, after writing its file."""
    from densevit.data.crops import plain_view
    from densevit.evaluate.predict import predict_together
    from densevit.evaluate.predictions import write_predictions
    from densevit.evaluate.probes.run import run_probe
    from densevit.evaluate.resume import predict_in_parts

    view = plain_view(network.image_size, **network.preprocessing)
    for test_set in request.test_sets:

        def predict(chosen: range, test_set: TestSet = test_set) -> ImagePredictions:
            return predict_together(
                network.model, test_set, view, resources.device, resources.world,
                batch_size=resources.batch_size, workers=resources.workers, chosen=chosen,
            ).to_predictions(test_set)  # fmt: skip

        path = target.predictions_file(test_set.name)
        yield (
            test_set.name,
            predict_in_parts(predict, test_set, path, network.source, resources.world),
        )
    probed = _probed_network(network, request, target, resources)
    for name, splits in request.probes.items():
        predictions = run_probe(name, probed, splits)
        if resources.world.writes:
            write_predictions(predictions, target.predictions_file(name), network.source)
        yield name, predictions


def _probed_network(
    network: LoadedModel, request: EvalRequest, target: RunFolder, resources: Resources
) -> ProbedNetwork:
    from densevit.evaluate.probes.run import ProbedNetwork, reads_both_tokens
    from densevit.models.vit import DenseViT, TimmTokens

    model: DenseViT | TimmTokens
    model = network.model if isinstance(network.model, DenseViT) else TimmTokens(network.model)
    return ProbedNetwork(
        model, network.image_size, network.preprocessing, model.grid, resources,
        both=reads_both_tokens(request.probes), source=network.source,
        features_folder=target.features_folder, seed=request.seed,
    )  # fmt: skip


_ON_CLASSES_OF = {"top1_imagenet-a": "ImageNet-A", "top1_imagenet-r": "ImageNet-R"}


def _print(benchmarks: dict[str, Numbers]) -> None:
    from densevit.evaluate.benchmark_metrics import BENCHMARK_METRICS

    own = [metric for record in BENCHMARK_METRICS for metric in record.metrics]
    for name, numbers in benchmarks.items():
        parts = []
        for metric in (*MULTILABEL, *metrics_of(name), *own):
            if metric.name in numbers:
                parts.append(metric.text(numbers[metric.name], 2))
                low, high = (numbers.get(f"{metric.name}_{end}") for end in ("low", "high"))
                if low is not None and high is not None:
                    parts[-1] += f" [{low:.2f}, {high:.2f}]"
        parts += [
            f"top-1 accuracy on the classes of {benchmark} {numbers[key]:.2f} %"
            for key, benchmark in _ON_CLASSES_OF.items()
            if key in numbers
        ]
        ways = f" of {numbers['ways']} classes" if "ways" in numbers else ""
        say(f"{name}: {', '.join(parts)}; {numbers['n']} images{ways}")
