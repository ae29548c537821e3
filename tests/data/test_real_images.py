"""Real photographs and drawings (PACS), if they are next to the checkout."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from densevit.config.resolve import build, read_layers
from densevit.data.datasets import open_data
from densevit.data.loaders import BatchOrder, training_batches

ROOT = Path(__file__).parent.parent.parent
PICTURES = ROOT.parent / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not (PICTURES / "pacs" / "photo").is_dir(), reason=f"PACS is not in {PICTURES}"
)


@pytest.fixture
def pacs(monkeypatch):
    monkeypatch.setenv("DENSEVIT_DATA", str(PICTURES))
    config = build(read_layers(ROOT / "experiments" / "pacs_small.yaml"))
    return config, open_data(config, 64)


def test_the_experiment_finds_its_pictures(pacs):
    _, data = pacs
    assert len(data.train.classes) == 7
    assert len(data.train) + len(data.val) == 1670  # the photos of PACS (Li et al. 2017, table 1)
    assert list(data.benchmarks) == ["art_painting", "cartoon", "sketch"]
    largest = max(Counter(data.val.labels).values()) / len(data.val)
    assert 0.25 < largest < 0.27  # the accuracy of always predicting the largest class


def test_every_domain_decodes_and_the_views_keep_the_picture_apart(pacs):
    _, data = pacs
    for images in (data.train, data.val, *data.benchmarks.values()):
        picture = images.image(len(images) // 2).decode()
        assert (picture.mode, picture.size) == ("RGB", (128, 128))
    order = BatchOrder(len(data.train), batch_size=16, seed=0)
    crops = next(iter(training_batches(data.train, 64, order, workers=0, pin=False)))
    batch = crops.developed((0.5,) * 3, (0.5,) * 3)
    assert batch.view1.shape == batch.view2.shape == (16, 3, 64, 64)
    assert [data.train.labels[i] for i in batch.ids] == batch.labels.tolist()
    for place in (batch.place1, batch.place2):
        assert place.min() >= 0
        assert place.max() <= 128
        assert (place[:, 1] < place[:, 3]).all()
        assert (place[:, 0] != place[:, 2]).all()
    # Two views of an image are closer in mean color than views of different images.
    colors = [view.mean((2, 3)).numpy() for view in (batch.view1, batch.view2)]
    distances = np.linalg.norm(colors[0][:, None] - colors[1][None], axis=-1)
    assert np.diag(distances).mean() < distances.mean()
