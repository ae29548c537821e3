"""Cue conflict on its real images, if they are next to the checkout."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densevit.data.crops import plain_view
from densevit.data.imagenet import category_members, wnids
from densevit.data.loaders import plain_batches
from densevit.data.open_benchmark import open_benchmark
from densevit.evaluate.metrics import score
from densevit.evaluate.predict import predict

PICTURES = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "cue_conflict"

pytestmark = pytest.mark.skipif(not PICTURES.is_dir(), reason=f"cue conflict is not in {PICTURES}")


def test_shape_bias_is_that_of_a_count_by_hand(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(192, 1000))  # fmt: skip
    model.num_classes = 1000
    model[2].weight.data *= 40  # otherwise all images look alike to it
    asked = open_benchmark("cue-conflict", str(PICTURES), wnids(), "x")
    view = plain_view(32, (0.5,) * 3, (0.5,) * 3, 1.0, "center", "bicubic")
    batches = plain_batches(asked, view, batch_size=50, workers=0, pin=False)
    answers = predict(model, batches, asked, torch.device("cpu"), lambda: None, 4).to_predictions(
        asked
    )
    numbers = score(answers)
    shape = texture = 0
    members = category_members()
    for path in sorted((PICTURES).rglob("*.*")):
        if path.parent.name not in members:
            continue
        with torch.inference_mode():
            chances = model(view(Image.open(path).convert("RGB"))[None])[0].softmax(dim=0).numpy()
        mean = {name: np.mean([chances[wnids().index(w)] for w in m]) for name, m in members.items()}  # fmt: skip
        chosen = max(mean, key=mean.get)
        shape += chosen == path.parent.name
        texture += chosen == re.sub(r"\d+", "", path.stem.split("-")[1])
    assert numbers["n"] == 160
    assert shape > 0
    assert texture > 0
    assert numbers["shape_bias"] == pytest.approx(100 * shape / (shape + texture))
    assert numbers["top1"] == pytest.approx(100 * shape / 160)
