"""Measure evaluation against the forward pass, a kNN of ImageNet's size, recomputed metrics.

    python bench/evaluate.py [--only throughput,knn,recompute] [--full] [--rounds N]
                             [--device cuda] [--precision bf16]

    throughput  images per second of `predict` on batches in memory, against a loop that only calls
                the network (on a GPU, only copies them there and calls it); both take turns in one
                process, ratio of the medians
    knn         random float16 features of ImageNet's 1,281,167 training images and ViT-S: seconds
                of a part of the 50,000 test rows (--full: of all), and the peak memory of a process
                that holds all features, the test rows and the scores
    recompute   the metrics of six benchmarks of their real sizes from made-up predictions on disk

Prints a Markdown table of medians over the rounds with the goal of each and the ratio to it; a goal
of `>=` is reached from 1 on, the others up to 1. `--json` writes all of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, in_own_process, seconds_of, selected, table, write_record

from densevit.cli.parser import positive
from densevit.evaluate.recompute import recompute as recompute_metrics
from densevit.utils.errors import EXIT_MISTAKE, UserError

TRAIN, TEST, CLASSES = 1_281_167, 50_000, 1000  # of ImageNet
GIBIBYTE = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss: bytes on macOS, KiB elsewhere


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("evaluate.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", default=",".join(MEASUREMENTS), metavar="NAMES", help="of %(default)s (all)")
    add("--rounds", type=positive, default=15, help="of throughput and recompute (%(default)s)")
    add("--full", action="store_true", help="kNN of all 50,000 test rows")
    add("--model", default="vit_tiny_patch16_224", help="any ViT of timm (%(default)s)")
    add("--model-kwargs", type=json.loads, default={}, help="of the model, in JSON")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="(%(default)s)")
    add("--precision", choices=["float32", "bf16", "fp16"], default="float32",
        help="of the network's products (%(default)s)")  # fmt: skip
    add("--batch", type=positive, default=16, help="images (%(default)s)")
    add("--batches", type=positive, default=1, help="of each loop a round (%(default)s)")
    add("--train-rows", type=positive, default=TRAIN, help="of the kNN (%(default)s)")
    add("--test-rows", type=positive, default=2048, help="of the kNN that are timed (%(default)s)")
    add("--width", type=positive, default=384, help="of its features (%(default)s)")
    add("--share", type=positive, default=1, help="make one in N predictions (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    try:
        names = selected(options.only, MEASUREMENTS)
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    # Each runs in its own process, so that its peak memory is its own.
    rows = [row for name in names for row in in_own_process(MEASUREMENTS[name], options)]
    print(table(rows))
    if options.json:
        numbers = [row._asdict() for row in rows]
        write_record(options.json, "evaluate.py", given, options.device, rows=numbers)
    return 0


def throughput(options: argparse.Namespace) -> list[Row]:
    """Measure `predict` against a loop that calls the network, on the same batches."""
    import torch

    from densevit.data import imagenet
    from densevit.data.image_folder import FolderImages
    from densevit.data.test_set import plain_set
    from densevit.evaluate.predict import predict
    from densevit.train.step import DTYPES
    from densevit.utils.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    on_gpu = device.type == "cuda"
    model = timm.create_model(options.model, num_classes=CLASSES, **options.model_kwargs)
    model = model.to(device).eval()
    side = model.patch_embed.img_size[0]
    count = options.batch * options.batches
    batches = [
        (
            torch.randn(options.batch, 3, side, side),
            torch.randint(CLASSES, (options.batch,)),
            torch.arange(options.batch) + options.batch * number,
        )
        for number in range(options.batches)
    ]
    if on_gpu:
        batches = [tuple(part.pin_memory() for part in batch) for batch in batches]
    # With ImageNet's own classes, predictions among those of -A and -R are requested too.
    labels = tuple(torch.cat([b[1] for b in batches]).tolist())
    names = tuple(f"{number}.jpg" for number in range(count))
    test_set = plain_set("imagenet", FolderImages(Path(), imagenet.wnids(), names, labels))

    def bare() -> None:
        with torch.inference_mode():
            for images, _, _ in batches:
                model(images.to(device, non_blocking=True))
        if on_gpu:
            torch.cuda.synchronize()

    def whole() -> None:
        predict(model, batches, test_set, device, lambda: None, len(batches)).to_predictions(
            test_set
        )

    arms = {"bare": bare, "predict": whole}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(options.rounds + 1):
        # They take turns, and each is first equally often.
        for name in sorted(arms, reverse=bool(number % 2)):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                seconds[name].append(seconds_of(arms[name]))
    bare_seconds, own = (seconds[name][1:] for name in arms)  # without the first round
    label = f"{options.model}, {count} images per round"
    ratio = statistics.median(bare_seconds) / statistics.median(own)
    return [
        Row(f"{label}: bare forward pass", "images/s", [count / s for s in bare_seconds]),
        Row(f"{label}: predict", "images/s", [count / s for s in own]),
        Row("throughput: predict / bare", "", [ratio], 0.95, least=True),
        Row(
            "the same, median of the rounds' ratios",
            "",
            [b / s for b, s in zip(bare_seconds, own, strict=True)],
            0.95,
            least=True,
        ),
    ]


def knn(options: argparse.Namespace) -> list[Row]:
    """Measure a kNN on random features, which take as much work as real ones of equal sizes."""
    import torch

    from densevit.evaluate.probes.knn import knn as nearest_neighbours

    draws = torch.Generator().manual_seed(0)
    rows = TEST if options.full else min(options.test_rows, TEST)
    train = torch.empty(options.train_rows, options.width, dtype=torch.float16)
    for part in train.split(2**16):
        part.copy_(torch.randn(part.shape, generator=draws))
    labels = torch.randint(CLASSES, (options.train_rows,), generator=draws)
    # If only a part is timed, memory also holds what the whole would need.
    test = torch.randn(TEST, options.width, generator=draws).half()
    others = torch.ones(TEST - rows, CLASSES)
    device = torch.device(options.device)
    seconds = seconds_of(
        lambda: nearest_neighbours(train, labels, test[:rows], CLASSES, device=device)
    )
    del others
    sizes = f"{rows:,} x {options.train_rows:,} x {options.width}"
    found = [Row(f"kNN, {sizes}", "s", [seconds])]
    if rows < TEST:
        found.append(Row(f"kNN, {TEST:,} test rows: estimated from these", "s",
                         [seconds * TEST / rows]))  # fmt: skip
    return [*found, Row(f"kNN, {sizes}: peak memory of the process", "GiB", [_peak_gib()], 8.0)]


def recompute(options: argparse.Namespace) -> list[Row]:
    """Measure computing the metrics of six benchmarks from their prediction files."""
    from densevit.evaluate.predictions import write_predictions
    from densevit.runs.directory import RunFolder

    values = []
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name))
        (folder.path / "predictions").mkdir()
        total = 0
        for answers in made_answers(options.share):
            write_predictions(answers, folder.predictions_file(answers.benchmark))
            total += len(answers.labels)
        # The first time also imports, and reads ImageNet's reassessed labels.
        for _ in range(options.rounds + 1):
            values.append(seconds_of(lambda: recompute_metrics(folder)))
    label = f"metrics of six benchmarks, {total:,} predictions"
    return [
        Row(f"{label}: the first time in a process", "s", values[:1], 2.0),
        Row(f"{label}: again", "s", values[1:], 2.0),
    ]


def made_answers(share: int) -> list[Any]:
    """Return random predictions, a third right, for one in `share` images of six benchmarks."""
    from densevit.data.open_benchmark import LAYOUTS, expected_classes
    from densevit.evaluate.predictions import ClassPredictions

    draws = np.random.default_rng(0)
    names = ("imagenet", "imagenet-a", "imagenet-r", "imagenet-v2", "stylized-imagenet",
             "imagenet-sketch")  # fmt: skip
    several = []
    for name in names:
        classes, count = expected_classes(LAYOUTS[name]), LAYOUTS[name].images // share
        labels = draws.integers(len(classes), size=count, dtype=np.int32)
        first = np.where(
            draws.random(count) < 1 / 3, labels, draws.integers(len(classes), size=count)
        )
        # Five different classes, as from a network.
        top = (first[:, None] + np.arange(5)) % len(classes)
        probabilities = -np.sort(-draws.dirichlet([0.3] * 6, count)[:, :5], axis=1)
        wnids = [classes[label] for label in labels]
        samples = [f"{w}/ILSVRC2012_val_{n:08}.JPEG" for n, w in enumerate(wnids, 1)]
        own = len(classes) == CLASSES
        among = {
            f"imagenet-{each}": np.where(
                np.isin(labels, draws.choice(CLASSES, 200, replace=False)), first, -1
            ).astype(np.int32)
            for each in ("a", "r")
            if name == "imagenet"
        }
        several.append(
            ClassPredictions(
                name, classes, samples, labels, top.astype(np.int32),
                probabilities.astype(np.float32),
                -np.log(probabilities[:, 0].clip(1e-6)).astype(np.float32),
                None if own else first.astype(np.int32), among, layout=name,
            )
        )  # fmt: skip
    return several


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIBIBYTE


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "throughput": throughput,
    "knn": knn,
    "recompute": recompute,
}


if __name__ == "__main__":
    sys.exit(main())
