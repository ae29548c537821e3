"""What an evaluation costs beside the forward pass; a kNN of ImageNet's size; numbers made again.

    python bench/evaluate.py [--only throughput,knn,recompute] [--full] [--rounds N]
                             [--device cuda] [--precision bf16]

    throughput  pictures a second of `predict` on batches held in memory, beside a loop that only
                calls the network (on a GPU, that only copies them there and calls it); both take
                turns in one process, ratio of the medians
    knn         random float16 features of ImageNet's 1,281,167 training pictures and ViT-S: seconds
                of a part of the 50,000 test rows (--full: of all), and the peak memory of a process
                that holds all features, the test rows and the scores
    recompute   the numbers of six benchmarks of their real sizes from made answers on the disk

Prints a Markdown table of medians over the rounds with the goal of each and the ratio to it; a goal
of `>=` is reached from 1 on, the others up to 1. `--json` writes all of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from densevit.commandline import positive
from densevit.errors import EXIT_MISTAKE, UserError, nearest

TRAIN, TEST, CLASSES = 1_281_167, 50_000, 1000  # of ImageNet
GIBIBYTE = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss: bytes there, KiB elsewhere


class Row(NamedTuple):
    """A measured quantity, a value a round, and what it should be: at most, or at `least`."""

    name: str
    unit: str
    values: list[float]
    goal: float | None = None
    least: bool = False


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
    add("--batch", type=positive, default=16, help="pictures (%(default)s)")
    add("--batches", type=positive, default=1, help="of each loop a round (%(default)s)")
    add("--train-rows", type=positive, default=TRAIN, help="of the kNN (%(default)s)")
    add("--test-rows", type=positive, default=2048, help="of the kNN that are timed (%(default)s)")
    add("--width", type=positive, default=384, help="of its features (%(default)s)")
    add("--share", type=positive, default=1, help="one in so many answers is made (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    try:
        names = _names(options.only)
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    # Each in a process of its own: its peak memory is then its own.
    rows = [row for name in names for row in in_own_process(MEASUREMENTS[name], options)]
    print(table(rows))
    if options.json:
        result = json.dumps(_result(given, rows, options.device), indent=2)
        options.json.write_text(result + "\n", encoding="utf-8")
    return 0


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in MEASUREMENTS:
            raise UserError(f"--only: unknown name {name!r}; {nearest(name, MEASUREMENTS)}")
    return names


def _result(given: Sequence[str], rows: Sequence[Row], device: str) -> dict[str, Any]:
    import torch  # here, when everything is measured: the other processes need it to be small
    from contrast_arm import machine

    return {
        "command": shlex.join(["python", "bench/evaluate.py", *given]),
        "machine": machine(torch.device(device)),
        "rows": [row._asdict() for row in rows],
    }


def throughput(options: argparse.Namespace) -> list[Row]:
    """`predict` beside a loop that calls the network, on the same batches."""
    import torch

    from densevit.data import imagenet
    from densevit.data.benchmarks import plain_set
    from densevit.data.folders import FolderImages
    from densevit.evaluate import predict
    from densevit.step import DTYPES
    from densevit.torchvision_guard import ensure_torchvision

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
    # ImageNet's own classes: answers are then wanted among those of -A and -R, too.
    labels = tuple(torch.cat([b[1] for b in batches]).tolist())
    names = tuple(f"{number}.jpg" for number in range(count))
    asked = plain_set("imagenet", FolderImages(Path(), imagenet.wnids(), names, labels))

    def bare() -> None:
        with torch.inference_mode():
            for images, _, _ in batches:
                model(images.to(device, non_blocking=True))
        if on_gpu:
            torch.cuda.synchronize()

    def whole() -> None:
        predict(model, batches, asked, device, lambda: None, len(batches)).answers(asked)

    arms = {"bare": bare, "predict": whole}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(options.rounds + 1):
        # In turns, and each first as often as the other.
        for name in sorted(arms, reverse=bool(number % 2)):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                seconds[name].append(_seconds(arms[name]))
    bare_seconds, own = (seconds[name][1:] for name in arms)  # without the first round
    told = f"{options.model}, {count} pictures a round"
    ratio = statistics.median(bare_seconds) / statistics.median(own)
    return [
        Row(f"{told}: bare forward pass", "pictures/s", [count / s for s in bare_seconds]),
        Row(f"{told}: predict", "pictures/s", [count / s for s in own]),
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
    """Random features; of equal sizes, that is as much work as real ones are."""
    import torch

    from densevit.frozen.knn import knn as nearest_neighbours

    draws = torch.Generator().manual_seed(0)
    rows = TEST if options.full else min(options.test_rows, TEST)
    train = torch.empty(options.train_rows, options.width, dtype=torch.float16)
    for part in train.split(2**16):
        part.copy_(torch.randn(part.shape, generator=draws))
    labels = torch.randint(CLASSES, (options.train_rows,), generator=draws)
    # Where a part is timed, what the whole would hold besides lies in memory, too.
    test = torch.randn(TEST, options.width, generator=draws).half()
    others = torch.ones(TEST - rows, CLASSES)
    device = torch.device(options.device)
    seconds = _seconds(
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
    """The numbers of six benchmarks from their files."""
    from densevit import eval_cli
    from densevit.predictions import write_answers
    from densevit.rundir import RunFolder

    values = []
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name))
        (folder.path / "predictions").mkdir()
        total = 0
        for answers in made_answers(options.share):
            write_answers(answers, folder.predictions_file(answers.benchmark))
            total += len(answers.labels)
        # The first time also imports, and reads ImageNet's reassessed labels.
        for _ in range(options.rounds + 1):
            values.append(_seconds(lambda: eval_cli.recompute(folder)))
    told = f"numbers of six benchmarks, {total:,} answers"
    return [
        Row(f"{told}: the first time in a process", "s", values[:1], 2.0),
        Row(f"{told}: again", "s", values[1:], 2.0),
    ]


def made_answers(share: int) -> list[Any]:
    """Answers by chance, a third of them right, to one in `share` of six benchmarks' pictures."""
    from densevit.data.benchmarks import LAYOUTS, expected_classes
    from densevit.predictions import Answers

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
        # Five different ones, as of a network.
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
            Answers(
                name, classes, samples, labels, top.astype(np.int32),
                probabilities.astype(np.float32),
                -np.log(probabilities[:, 0].clip(1e-6)).astype(np.float32),
                None if own else first.astype(np.int32), among, layout=name,
            )
        )  # fmt: skip
    return several


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIBIBYTE


def in_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of this module returns in a process that has done nothing before."""
    fresh = multiprocessing.get_context("spawn")  # a fork would inherit memory
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        return pool.submit(function, *arguments).result()


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "throughput": throughput,
    "knn": knn,
    "recompute": recompute,
}


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| | value | goal | value / goal |", "|---|--:|--:|--:|"]
    for row in rows:
        middle = statistics.median(row.values)
        goal, ratio = "", ""
        if row.goal is not None:
            goal = f"{'≥' if row.least else '≤'} {row.goal:g} {row.unit}".rstrip()
            ratio = f"{middle / row.goal:.2f}"
        lines.append(f"| {row.name} | {f'{middle:.3g} {row.unit}'.rstrip()} | {goal} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
