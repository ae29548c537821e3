"""The log says before the first step why a run will learn little."""

import pytest
import torch

from densevit.config.run_config import RunConfig
from densevit.models.vit import DenseViT
from densevit.train.startup_log import consequences, warnings

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
XAVIER = {**SMALL, "weight_init": "moco"}
LEARNS = {"model_kwargs": XAVIER, "learning_rate": 1e-3, "momentum": 0.9, "cl_mode": "dense"}


def warned(steps, **settings):
    config = RunConfig(**{**LEARNS, "projection_hidden_dim": 32, **settings})
    torch.manual_seed(0)
    model = DenseViT(config, 5, pretrained=False)
    assert consequences(config, model, steps)[0].startswith(
        f"learning_rate {config.learning_rate:g}, {steps} steps of 256 images"
    )
    return warnings(config, model, steps)


def test_a_run_that_can_learn_is_not_warned_of():
    assert warned(1000) == []


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"model_kwargs": SMALL}, True),
        ({"model_kwargs": {**SMALL, "embed_dim": 192}}, False),
        # Weights that are trained already keep their own scale.
        ({"model_kwargs": SMALL, "init_checkpoint": "weights.pt"}, False),
    ],
)
def test_a_narrow_network_with_timm_s_default_weights(settings, wanted):
    found = warned(1000, **settings)
    assert [text.startswith("model_kwargs: the network is 48 wide") for text in found] == (
        [True] if wanted else []
    )


def test_rates_that_cannot_move_the_weights():
    # Xavier's uniform weights have the variance 2 / (inputs + outputs); the median is over the
    # matrices of 48 x 48 (queries, keys and values apart), 48 x 48 and twice 48 x 192.
    (found,) = warned(200, learning_rate=1e-4)
    assert "the rates of all 200 steps sum to 0.01;" in found
    spread = float(found.partition("standard deviation of ")[2].split(";")[0])
    assert (2 / (48 + 192)) ** 0.5 < spread < (2 / (48 + 48)) ** 0.5
    assert warned(20000, learning_rate=1e-4) == []
    assert warned(200, learning_rate=1e-4, init_checkpoint="weights.pt") == []


def test_a_moving_average_that_is_longer_than_the_run():
    (found,) = warned(600, momentum=0.999)
    assert "0.999 averages over about 1000 steps, and the run has 600" in found
    assert found.endswith("0.98 fits")
    assert warned(600, momentum=0.98) == []
    assert warned(600, momentum=0.999, key_encoder="shared") == []
    assert warned(600, momentum=0.999, cl_mode="none") == []
