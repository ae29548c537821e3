"""What only a GPU can show; skipped if torch finds none."""

import math
import random
import signal
from contextlib import contextmanager, suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import without_machine
from torch.nn import functional as F

from densevit.cli.main import main
from densevit.config.identity import identity
from densevit.config.run_config import RunConfig
from densevit.contrast import queue_attention
from densevit.contrast.info_nce import queue_info_nce
from densevit.contrast.matching import match, random_match, true_match
from densevit.contrast.queue import FeatureQueue
from densevit.contrast.sampling import sample
from densevit.cost import measure
from densevit.data.batch import Batch
from densevit.data.color_augment import augment
from densevit.data.crops import RECIPES, draw_view
from densevit.evaluate.probes.knn import knn
from densevit.evaluate.probes.linear import linear_probe
from densevit.evaluate.probes.segmentation import Masked, dense_probe
from densevit.runs import checkpoint
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import read_metrics
from densevit.train.execute import execute
from densevit.train.learner import build_learner
from densevit.train.loop import train
from densevit.train.step import build_engine, train_step
from densevit.train.timing import PhaseTimer, peak_memory_mib
from densevit.utils.distributed import World
from densevit.utils.errors import Stopped
from densevit.utils.files import read_json

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def fused_available(device, dtype, dim):
    return queue_attention.fused_kernel(torch.device(device).type, dtype, dim) is not None


# Unit roundoff: half the distance of two neighbours at 1.
ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def unit(*shape, seed):
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(noise, dim=-1).to(GPU)


def triple(m, k, d):
    return unit(m, d, seed=0), unit(m, d, seed=1), unit(k, d, seed=2)


def some_excluded(groups, size):
    if groups is None:
        return None
    drawn = torch.rand(groups, size, generator=torch.Generator().manual_seed(3)) < 0.3
    drawn[0] = groups > 1  # a group without any negative left
    return drawn.to(GPU)


def logits_of(factors, exclude):
    negatives = factors[0] @ factors[1].T
    if exclude is None:
        return negatives
    rows = exclude.repeat_interleave(len(negatives) // len(exclude), dim=0)
    return negatives.masked_fill(rows, -math.inf)


@contextmanager
def no_waiting():
    """Make every wait for the GPU that torch knows of an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(params=[*queue_attention._KERNELS["cuda"], "chunked"])
def form(request, monkeypatch):
    """Select one of the kernels, also for few queries; or none of them."""
    kernels = () if request.param == "chunked" else (request.param,)
    monkeypatch.setitem(queue_attention._KERNELS, "cuda", kernels)
    monkeypatch.setattr(queue_attention, "_LEAST_ON_GPU", 1)
    queue_attention.fused_kernel.cache_clear()
    yield request.param
    queue_attention.fused_kernel.cache_clear()


def test_the_fastest_kernel_is_taken():
    cudnn, efficient = queue_attention._KERNELS["cuda"]
    half = cudnn if torch.cuda.get_device_capability() >= (8, 0) else efficient
    for dim in (16, 64, 128):
        assert queue_attention.fused_kernel("cuda", torch.float32, dim) == efficient
        for dtype in (torch.bfloat16, torch.float16):
            assert queue_attention.fused_kernel("cuda", dtype, dim) == half
    assert not fused_available(GPU, torch.float32, 20)


# 20: not a multiple of 8, which the kernels require. 1: a single query.
@pytest.mark.parametrize(("m", "k", "d"), [(60, 1500, 24), (60, 1501, 20), (1, 7, 8), (960, 4097, 128)])  # fmt: skip
@pytest.mark.parametrize("groups", [None, 4, "each"])
@pytest.mark.parametrize("dtype", ROUNDOFF)
@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_loss_and_gradients_stay_within_their_rounding(form, m, k, d, groups, dtype, temperature):
    """Compared with float64; tests/contrast/test_info_nce.py derives the bounds."""
    groups = m if groups == "each" or (m == 1 and groups) else groups
    q, p, queue = triple(m, k, d)
    exclude = some_excluded(groups, k)
    fused = fused_available(GPU, dtype, d)  # its first call compares numbers, and so waits
    leaf, tau = (
        q.clone().requires_grad_(),
        torch.tensor(temperature, device=GPU, requires_grad=True),
    )
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32), no_waiting():
        loss = queue_info_nce(leaf, p, queue, tau, exclude=exclude)
        loss.sum().backward()
    assert loss.dtype == leaf.grad.dtype == tau.grad.dtype == torch.float32

    exact, exact_tau = q.double().requires_grad_(), tau.detach().double().requires_grad_()
    scaled = exact / exact_tau
    logits = logits_of((scaled, queue.double()), exclude)
    wanted = F.softplus(logits.logsumexp(1) - (scaled * p.double()).sum(1))
    wanted.sum().backward()
    u = ROUNDOFF[dtype] if fused else ROUNDOFF[torch.float32]
    e = (2 * u + u * u) / temperature
    slack = 1e-5 / temperature  # of the sums
    far = (loss.double() - wanted).abs().max()
    assert far <= e + slack
    bound = (e / 2 + math.exp(2 * e) * (1 + u) ** 3 - 1 + 1e-5 + u) / temperature
    off = (leaf.grad.double() - exact.grad).norm(dim=1).max()
    assert off <= bound
    assert (tau.grad.double() - exact_tau.grad).abs() <= m * bound / temperature


@pytest.mark.parametrize("excluding", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_matrix_of_queries_times_queue_is_held(dtype, excluding):
    images, patches, k, d = 256, 196, 65536, 128
    q, p, queue = triple(images * patches, k, d)
    exclude = torch.zeros(images, k, dtype=torch.bool, device=GPU) if excluding else None
    assert fused_available(GPU, dtype, d)  # its first call allocates
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        queue_info_nce(q.requires_grad_(), p, queue, 0.2, exclude=exclude).sum().backward()
    taken = torch.cuda.max_memory_allocated() - before
    # A few arrays of the size of queries, queue and mask; the logits would have 6 or 13 GB.
    allowed = 8 * q.numel() * 4 + 2 * queue.numel() * 4 + (3 * images * k * 4 if excluding else 0)
    assert taken < allowed


def test_the_queue_holds_what_it_holds_on_a_cpu():
    here, there = FeatureQueue(50, 8, generator=torch.Generator().manual_seed(0)), None
    there = FeatureQueue(50, 8, generator=torch.Generator().manual_seed(0)).to(GPU)
    for call in range(9):
        keys = F.normalize(torch.randn(13, 8, generator=torch.Generator().manual_seed(call)), dim=1)
        keys[call] = math.nan
        ids = torch.arange(13) + 13 * call
        here.enqueue(keys, ids)
        on_gpu = keys.to(GPU), ids.to(GPU)
        with no_waiting():
            there.enqueue(*on_gpu)
    for name, value in here.state_dict().items():
        assert torch.equal(there.state_dict()[name].cpu(), value), name
    assert there.age() == pytest.approx(here.age())
    assert there.diversity() == here.diversity()


def test_matches_are_those_of_a_cpu():
    one, two = (torch.randn(4, 49, 64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(match(one.to(GPU), two.to(GPU)).cpu(), match(one, two))
    places = torch.rand(2, 64, 2, generator=torch.Generator().manual_seed(2)) * 100
    views = [torch.cat([p, p + 60], dim=1) for p in places]
    assert torch.equal(true_match(*(v.to(GPU) for v in views), (7, 7)).cpu(),
                       true_match(*views, (7, 7)))  # fmt: skip
    drawn = [random_match(4, 49, torch.Generator().manual_seed(0), d).cpu() for d in (CPU, GPU)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("strategy", ["random", "diverse", "hardest"])
def test_samples_are_those_of_a_cpu(strategy):
    keys = torch.randn(4, 196, 32, generator=torch.Generator().manual_seed(0))
    queue = F.normalize(torch.randn(300, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    chosen = [
        sample(keys.to(d), 50, strategy, queue.to(d), torch.Generator().manual_seed(5)).cpu()
        for d in (CPU, GPU)
    ]
    assert torch.equal(*(c.sort(dim=1).values for c in chosen))
    assert all(len(set(row.tolist())) == 50 for row in chosen[1])


def test_colors_are_those_of_a_cpu_and_nothing_waits():
    draws = random.Random(0)
    color = torch.tensor([draw_view(RECIPES[1], (64, 48), draws)[1] for _ in range(300)])
    color[0, :8] = color[1, :8]
    pixels = torch.randint(0, 256, (300, 224, 224, 3), dtype=torch.uint8)
    look = [torch.tensor(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    wanted = augment(pixels[::10], color[::10], *look)
    moved, its_look = pixels.to(GPU), [v.to(GPU) for v in look]
    with no_waiting():
        got = augment(moved, color, *its_look)
    torch.testing.assert_close(got[::10].cpu(), wanted, rtol=0, atol=2e-4)


SMALL = {
    "model_kwargs": {
        "img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2,
    },
    "batch_size": 8, "learning_rate": 1e-3, "queue_size": 128, "sampled_patches": 3,
    "dense_dim": 16, "projection_hidden_dim": 32,
}  # fmt: skip
MODES = [
    {"cl_mode": "none"},
    {"cl_mode": "global", "label_smoothing": 0.1, "mixup": 0.5},
    {"cl_mode": "dense", "sampling_strategy": "diverse", "learnable_temp": True},
    {"cl_mode": "dense", "query_patches": 5, "correspondence_features": "random",
     "sampling_strategy": "hardest"},
    {"cl_mode": "joint", "correspondence_features": "geometry", "grad_accumulation": 2},
    {"cl_mode": "joint", "key_encoder": "momentum", "momentum": 0.9, "lambda_weight": 1.0,
     "dense_negatives": "pooled"},
]  # fmt: skip


def engine_of(device, **fields):
    torch.manual_seed(0)
    learner = build_learner(RunConfig(**{**SMALL, **fields}), 5, device)
    learner.train()
    return build_engine(learner, device, World())


def batch_of(seed, device):
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(2)]
    sides = torch.tensor([[0.0, 0, 32, 32]]).repeat(8, 1)
    labels = torch.randint(5, (8,), generator=generator)
    ids = torch.arange(8) + 8 * (seed % 2)  # seen before, so entries are excluded
    return Batch(*views, sides, sides + 5.0, labels, ids).to(device)


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_no_step_waits_for_the_gpu(mode, precision):
    engine = engine_of(GPU, **mode, precision=precision)
    batches = [batch_of(step, GPU) for step in range(3)]
    losses = [train_step(engine, batches[0], 0.5, 0)]  # the first one tests the kernels
    with no_waiting():
        losses += [train_step(engine, batch, 0.5, 1 + s) for s, batch in enumerate(batches)]
    finite = [bool(numbers["counted"]) for numbers in losses]
    assert all(finite) or precision == "fp16"  # it searches for its loss scale
    assert int(engine.skipped) == finite.count(False)


@pytest.mark.parametrize("mode", [m for m in MODES if "sampling_strategy" not in m], ids=str)
def test_a_step_is_that_of_a_cpu(mode):
    """In float32; only the network's results, since random draws differ between devices."""
    numbers = []
    for device in (CPU, GPU):
        engine = engine_of(device, **mode, query_patches="all", sampled_patches=16)
        numbers.append(train_step(engine, batch_of(0, device), 0.5, 0))
    for name, value in numbers[0].items():
        assert float(numbers[1][name]) == pytest.approx(float(value), rel=1e-4), name


@pytest.fixture
def on_gpu(tiny):
    return {**tiny, "device": "cuda"}


def folder_of(tmp_path, settings, name="run"):
    folder = RunFolder(tmp_path / "runs" / name)
    folder.create(RunConfig(**settings))
    return folder


def logged(folder):
    """Return metrics of training, validation and health, without values that depend on the machine."""
    return [without_machine(line) for line in read_metrics(folder.metrics_file)[0]]


def weights_of(folder):
    state = checkpoint.load(folder.checkpoint_folder, identity(folder.config()).run)
    parts = ("model", "contrast", "averaged")
    return {f"{p}.{name}": v for p in parts for name, v in state.get(p, {}).items()}


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_run_ends_and_tells_what_it_did(tmp_path, on_gpu, mode, precision):
    folder = folder_of(tmp_path, {**on_gpu, **mode, "precision": precision, "log_every": 1})
    assert execute(folder) == 0, folder.log_file.read_text()
    assert list(read_json(folder.results_file)["benchmarks"]) == ["val", "dark"]
    lines, _ = read_metrics(folder.metrics_file)
    trained = [line for line in lines if "train/images_per_second" in line]
    assert len(trained) == 10
    phases = {name for name in trained[0] if name.startswith("time/")}
    assert {"time/data_ms", "time/augment_ms", "time/forward_ms", "time/backward_ms",
            "time/optimizer_ms"} <= phases  # fmt: skip
    assert all(line[phase] >= 0 for line in trained for phase in phases)
    assert all(line["train/peak_memory_mib"] > 0 for line in trained)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_run_that_was_stopped_ends_as_if_it_was_not(tmp_path, on_gpu, mode):
    """With so few patches torch's kernels sum in a fixed order, so the bits are the same."""
    settings = {**on_gpu, **mode, "epochs": 3}
    whole, stopped = (folder_of(tmp_path, settings, name) for name in ("whole", "stopped"))
    assert execute(whole) == 0
    calls = 0

    def asked():
        nonlocal calls
        calls += 1
        return signal.SIGTERM if calls in (1, 3, 9, 15, 22) else 0

    starts = 0
    while not stopped.results_file.exists():
        starts += 1
        with suppress(Stopped):
            train(stopped, asked, stopped.config())
    assert starts > 4
    assert [line["step"] for line in logged(stopped)] == [line["step"] for line in logged(whole)]
    for name, value in weights_of(whole).items():
        assert torch.equal(weights_of(stopped)[name], value), name


def test_a_compiled_run_ends(tmp_path, on_gpu):
    folder = folder_of(tmp_path, {**on_gpu, "cl_mode": "joint", "compile": True, "epochs": 1})
    assert execute(folder) == 0, folder.log_file.read_text()


@pytest.mark.parametrize("workers", [1, 3])
def test_loading_processes_change_nothing(tmp_path, on_gpu, workers):
    alone = folder_of(tmp_path, {**on_gpu, "epochs": 3}, "alone")
    helped = folder_of(tmp_path, {**on_gpu, "epochs": 3, "workers": workers}, "helped")
    assert execute(alone) == execute(helped) == 0
    assert logged(alone) == logged(helped)


def test_an_evaluation_answers_as_on_a_cpu(tmp_path, on_gpu, capsys):
    folder = folder_of(tmp_path, {**on_gpu, "probes": ["knn", "linear-probe"]})
    assert execute(folder) == 0
    columns = []
    for device in ("cpu", "cuda"):
        target = tmp_path / device
        words = ["--to", str(target), "--device", device, "--workers", "2"]
        assert main(["eval", str(folder.path), "val", "dark", "knn", "linear-probe", *words]) == 0
        table = pq.read_table(RunFolder(target).predictions_file("dark"))
        columns.append(
            {n: np.stack(table[n].to_numpy()) for n in ("label", "top5", "probabilities")}
        )
    capsys.readouterr()
    assert (columns[0]["label"] == columns[1]["label"]).all()
    np.testing.assert_allclose(columns[0]["probabilities"], columns[1]["probabilities"], atol=1e-5)
    numbers = [
        read_json(RunFolder(tmp_path / d).results_file)["benchmarks"] for d in ("cpu", "cuda")
    ]
    for name in numbers[0]:
        assert numbers[1][name]["top1"] == pytest.approx(numbers[0][name]["top1"], abs=10), name


def test_probes_answer_as_on_a_cpu():
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 5
    train_rows = (torch.randn(600, 32, generator=draws) + 2 * F.one_hot(labels, 32)).half()
    test_rows = (torch.randn(100, 32, generator=draws) + 2 * F.one_hot(labels[:100], 32)).half()
    for classify, close in ((knn, 1e-3), (linear_probe, 5e-2)):
        here, there = (classify(train_rows, labels, test_rows, 5, device=d) for d in (CPU, GPU))
        torch.testing.assert_close(here, there, rtol=close, atol=close)
    patches = torch.randn(24, 16, 8, generator=draws).half()
    masks = [(p[:, 0].reshape(4, 4) > 0).numpy().astype(np.uint8).repeat(8, 0).repeat(8, 1)
             for p in patches]  # fmt: skip
    part = Masked(patches, lambda i: masks[i])
    names = [str(i) for i in range(24)]
    here, there = (
        dense_probe(part, part, ["a", "b"], (4, 4), samples=names, size=32, device=d)
        for d in (CPU, GPU)
    )
    assert np.abs(here.right.astype(int) - there.right.astype(int)).max() <= 8  # of 1,024 pixels


def test_the_clock_adds_up():
    clock, begin, end = PhaseTimer(GPU), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    x = torch.randn(2048, 2048, device=GPU)
    for _ in range(2):
        begin.record()
        for phase in ("one", "two"):
            clock.mark(phase)
            for _ in range(20):
                x = F.normalize(x @ x)
        clock.mark(None)
        end.record()
        phases = clock.read()
        assert phases.keys() == {"one", "two"}
        assert sum(phases.values()) == pytest.approx(begin.elapsed_time(end) / 1000, rel=0.1)
    assert peak_memory_mib(GPU) >= 16


def test_a_probe_of_a_runs_speed(on_gpu):
    found = measure.measured(RunConfig(**on_gpu).model_dump(mode="json"), 2, imports=0.0)
    assert "error" not in found, found
    assert (found["on_gpu"], found["processes"]) == (True, 2)
    assert found["device"] == torch.cuda.get_device_name()
    assert len(found["steps"]) > 0
    assert all(seconds > 0 for seconds in found["steps"])
