"""A run is rehearsed without content: what works passes, and what cannot is one line."""

import pytest
import torch
from tiny import TINY

from densevit.config.run_config import RunConfig
from densevit.data.batch import Batch
from densevit.train.learner import build_learner
from densevit.train.rehearsal import rehearse
from densevit.train.step import build_engine, train_step
from densevit.utils.distributed import World
from densevit.utils.errors import UserError

SMALL = TINY["model_kwargs"]
DISTILLED = {
    "model_name": "deit_tiny_distilled_patch16_224", "lambda_weight": 1, "model_kwargs": SMALL,
}  # fmt: skip


def config(**fields):
    return RunConfig(**{**TINY, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"cl_mode": "none", "mixup": 0.2},
        {"cl_mode": "global", "learnable_temp": True, "layer_decay": 0.8},
        {"cl_mode": "joint", "correspondence_features": "geometry", "query_patches": 5},
        {"sampling_strategy": "hardest", "key_encoder": "shared", "drop_path": 0.1},
        {"sampling_strategy": "diverse", "gradient_checkpointing": True, "precision": "bf16"},
        {"dataset": "shapes-many", "dense_negatives": "pooled", "label_smoothing": 0.1},
        {"model_kwargs": {**SMALL, "patch_drop_rate": 0.8}, "correspondence_features": "random"},
        {"model_kwargs": {**SMALL, "reg_tokens": 2, "class_token": False, "global_pool": "avg"}},
        DISTILLED,
    ],
    ids=str,
)
def test_settings_that_work_pass(fields):
    assert rehearse(config(**fields)) == 32


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_kwargs": {**SMALL, "in_chans": 1}}, "model_kwargs: in_chans: 1 must be 3"),
        (
            {"model_kwargs": {**SMALL, "global_pool": ""}},
            "model_kwargs: vit_tiny_patch16_224 cannot be trained with these settings: its outputs "
            "for images are (4, 17, 7)",
        ),
        ({"sampled_patches": 17}, "sampled_patches: 17 is more than the 16 patches"),
    ],
)
def test_settings_that_cannot_work_are_one_line(fields, told):
    with pytest.raises(UserError) as error:
        rehearse(config(**fields))
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_a_loss_that_looks_at_values_is_left_to_the_run(monkeypatch):
    def looks(*_, **__):
        return torch.zeros((), device="meta").item()

    monkeypatch.setattr("densevit.contrast.loss.queue_info_nce", looks)
    assert rehearse(config()) == 32


@pytest.mark.parametrize(
    "fields",
    [DISTILLED, {"model_kwargs": {**SMALL, "patch_drop_rate": 0.8}, "sampled_patches": 16}],
    ids=["two classifiers", "dropped patches"],
)
def test_what_passes_also_trains(fields):
    """A distilled DeiT has two classifiers, which are its linear probe at λ = 1."""
    learner = build_learner(config(**fields), 3, torch.device("cpu"))
    engine = build_engine(learner, torch.device("cpu"), World(0, 1, 0))
    images = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0.0, 0, 32, 32]]).expand(8, -1)
    batch = Batch(*images, places, places, torch.arange(8) % 3, torch.arange(8))
    learner.train()
    metrics = train_step(engine, batch, learner.config.lambda_weight, 0)
    assert metrics["counted"] == 1
