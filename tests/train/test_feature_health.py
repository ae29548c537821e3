"""The feature health of runs: a short training that works, and trainings that cannot."""

import copy
import json
import math
import re
from itertools import islice

import pytest
import torch

from densevit.config.run_config import RunConfig
from densevit.contrast.matching import match_quality, true_match
from densevit.data.datasets import open_data
from densevit.data.loaders import BatchOrder, probe_crops, training_batches
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import read_metrics
from densevit.train.execute import execute
from densevit.train.feature_health import measure_health
from densevit.train.learner import build_learner
from densevit.train.step import build_engine, train_step
from densevit.utils.distributed import World
from densevit.utils.errors import EXIT_FAILED

SHAPES = {
    "dataset": "shapes",
    "model_kwargs": {
        "img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4,
    },
    "batch_size": 32, "warmup_epochs": 1, "learning_rate": 1.5e-3, "lambda_weight": 0.2,
    "key_encoder": "momentum", "momentum": 0.99, "queue_size": 4096, "sampled_patches": 8,
    "projection_hidden_dim": 256, "workers": 0, "device": "cpu",
}  # fmt: skip


LOOK = (0.5,) * 3, (0.5,) * 3


@pytest.fixture(autouse=True)
def _not_evaluated(monkeypatch):
    """Skip the evaluation of the finished networks on 3,600 images of test sets."""
    monkeypatch.setattr("densevit.train.loop.evaluate_missing", lambda *_: None)


def run(tmp_path, settings):
    folder = RunFolder(tmp_path / "run")
    folder.create(RunConfig(**settings))
    return execute(folder), folder


def series(folder, name):
    lines, _ = read_metrics(folder.metrics_file)
    return [line[name] for line in lines if name in line]


def test_a_short_dense_training_learns_and_does_not_collapse(tmp_path):
    code, folder = run(tmp_path, {**SHAPES, "epochs": 2, "log_every": 45})
    assert code == 0
    assert series(folder, "health/match_precision") == [], "the grid of 4 x 4 is too coarse"
    rank = series(folder, "health/dense_effective_rank")
    assert rank[-1] > 0.25 * 128
    assert series(folder, "health/collapsed") == [0.0] * 3
    # It first rises, because random vectors are easier to distinguish than learned ones.
    losses = series(folder, "train/contrastive_loss")
    assert losses[-1] < min(losses[1:-1]) < series(folder, "train/chance_loss")[0]
    assert series(folder, "train/chance_loss")[0] == pytest.approx(math.log(4097))
    overlap = series(folder, "health/overlap_share")
    assert overlap == [overlap[0]] * 3  # it depends on the views, not on the network


def learner_and_probe(settings):
    config = RunConfig(**settings)
    data = open_data(config, 32)
    torch.manual_seed(0)
    learner = build_learner(config, len(data.train.classes), torch.device("cpu"))
    return learner, data, probe_crops(data.val, 32, 64).developed(*LOOK)


def test_a_queue_of_constant_features_fires_the_alarm():
    learner, data, probe = learner_and_probe({**SHAPES, "lambda_weight": 1})
    assert measure_health(learner, probe, 1)["collapsed"] == 0
    order = BatchOrder(len(data.train), batch_size=32, seed=0)
    engine = build_engine(learner, torch.device("cpu"), World())
    batches = training_batches(data.train, 32, order, workers=0, pin=False)
    for step, crops in enumerate(islice(batches, 50)):
        learner.contrast.queues["dense"].features.fill_(128**-0.5)
        train_step(engine, crops.developed(*LOOK), 1.0, step)
    numbers = measure_health(learner, probe, 1)
    assert numbers["collapsed"] == 1
    assert numbers["dense_feature_std"] < 0.3


@pytest.mark.parametrize("answer", ["warn", "stop"])
def test_an_absurd_temperature_fires_the_alarm(tmp_path, answer):
    settings = {**SHAPES, "temperature": 1e3, "lambda_weight": 1.0, "key_encoder": "shared"}
    settings |= {"epochs": 1, "warmup_epochs": 0, "health_every": 50, "on_collapse": answer}
    code, folder = run(tmp_path, settings)
    alarms = series(folder, "health/collapsed")
    lines, _ = read_metrics(folder.metrics_file)
    looks = [line["step"] for line in lines if "health/collapsed" in line]
    said = "the contrastive features have collapsed at step"
    assert alarms[0] == 0
    if answer == "warn":
        assert code == 0
        assert looks == [0, 50, 75]  # every 50 steps and at the end of the epoch
        assert alarms[-1] == 1
        assert folder.log_file.read_text().count(said) == 1
    else:
        assert code == EXIT_FAILED
        assert alarms[-1] == 1
        assert alarms.count(1) == 1
        assert folder.status().state == "failed"
        assert folder.status().message.startswith(said)
        assert "with on_collapse: warn it continues" in folder.status().message


@pytest.mark.parametrize(("answer", "code", "looks"), [("warn", 0, 3), ("stop", EXIT_FAILED, 2)])
def test_a_network_that_is_collapsed_from_the_start_is_told_when_it_stays_so(
    tmp_path, tiny, answer, code, looks
):
    # With such a small LayerScale no image has an effect: every token keeps its initial value.
    kwargs = {**tiny["model_kwargs"], "depth": 12, "init_values": 1e-5}
    ended, folder = run(tmp_path, {**tiny, "cl_mode": "global", "model_kwargs": kwargs,
                                   "learning_rate": 1e-6, "on_collapse": answer})  # fmt: skip
    assert ended == code
    assert series(folder, "health/collapsed") == [1.0] * looks  # at steps 0, 5 and 10
    told = r"(?:WARNING|ERROR) the contrastive features have collapsed at step (\d+):"
    assert re.findall(told, folder.log_file.read_text()) == ["5"]


def test_features_that_are_not_finite_have_no_health(tiny):
    learner, _, probe = learner_and_probe({**tiny, "cl_mode": "dense"})
    with torch.no_grad():
        learner.model.backbone.norm.weight.fill_(math.nan)
    numbers = measure_health(learner, probe, 0.5)
    assert "image_rank" not in numbers
    json.dumps(numbers, allow_nan=False)


def test_looking_changes_nothing(tiny):
    settings = {**tiny, "cl_mode": "joint", "key_encoder": "momentum", "query_patches": 5}
    learner, _, probe = learner_and_probe(settings)
    parts = learner.model, learner.contrast, learner.averaged
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    state = torch.get_rng_state()
    numbers = measure_health(learner, probe, 0.5)
    assert measure_health(learner, probe, 0.5) == numbers
    assert torch.equal(torch.get_rng_state(), state)
    for part, held in zip(parts, before, strict=True):
        assert part.training == (part is not learner.averaged), "keys are free of drop path"
        assert all(torch.equal(value, held[name]) for name, value in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({"cl_mode": "none"}, []),
        ({"cl_mode": "global"}, ["global"]),
        ({"cl_mode": "dense", "correspondence_features": "random"}, ["dense"]),
        ({"cl_mode": "joint", "correspondence_features": "geometry"}, ["global", "dense"]),
        ({"cl_mode": "joint", "lambda_weight": 1.0}, ["global", "dense"]),
    ],
    ids=str,
)
def test_every_run_has_the_numbers_that_apply_to_it(tiny, fields, kinds):
    learner, _, probe = learner_and_probe({**tiny, **fields})
    weight = 0.0 if not kinds else learner.config.lambda_weight
    numbers = measure_health(learner, probe, weight)
    wanted = {"image_rank", "patch_rank", "overlap_share", "unique_match_share"}
    wanted |= {"image_rank_max", "patch_rank_max"}
    each = ("effective_rank", "effective_rank_max", "feature_std", "uniformity", "alignment", "positive_similarity",
            "negative_similarity", "queue_diversity", "queue_age")  # fmt: skip
    wanted |= {f"{kind}_{name}" for kind in kinds for name in each}
    wanted |= {"collapsed"} if kinds else set()
    wanted |= {"gradient_share", "gradient_cosine"} if 0 < weight < 1 else set()
    assert set(numbers) == wanted
    json.dumps(numbers, allow_nan=False)
    assert numbers["patch_rank_max"] == 32  # the width; 64 images have more patches
    for kind in kinds:
        # |q − k|² = 2 − 2·q·k for unit vectors.
        alignment = 2 - 2 * numbers[f"{kind}_positive_similarity"]
        assert numbers[f"{kind}_alignment"] == pytest.approx(alignment, abs=1e-4)
        queue = learner.contrast.queues[kind]
        assert abs(numbers[f"{kind}_negative_similarity"]) < 0.1  # random vectors still
        assert (numbers[f"{kind}_queue_age"], queue.diversity()) == (0, 0)


@pytest.mark.parametrize("queries", ["all", 5])
def test_a_fine_grid_has_the_precision_of_matches_and_its_baselines(tiny, queries):
    # Without any training; the position embedding alone leads many patches to the same index.
    kwargs = {**tiny["model_kwargs"], "patch_size": 4}
    fields = {"cl_mode": "dense", "model_kwargs": kwargs, "query_patches": queries}
    learner, _, probe = learner_and_probe({**tiny, **fields})
    numbers = measure_health(learner, probe, 0.5)
    true = true_match(probe.place1, probe.place2, (8, 8))
    same = match_quality(torch.arange(64).expand_as(true), true, (8, 8)).precision
    tolerance = 1e-6 if queries == "all" else 0.2  # some of the patches
    assert numbers["match_precision_same_index"] == pytest.approx(float(same), abs=tolerance)
    assert numbers["match_precision_uniform"] < numbers["match_precision_same_index"] < 1
    assert 0 < numbers["match_precision"] < 1


def test_the_numbers_do_not_depend_on_the_parts_that_the_probe_is_taken_in(tiny):
    numbers = []
    for batch_size in (2, 15):
        settings = {**tiny, "cl_mode": "joint", "batch_size": batch_size, "lambda_weight": 1.0}
        learner, _, probe = learner_and_probe(settings)
        numbers.append(measure_health(learner, probe, 1.0))
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
