"""Features of a tiny network compared with its own outputs, in any order, and stored."""

import pytest
import torch
from tiny import TINY
from torch.utils.data import DataLoader, Dataset

from densevit.config.run_config import RunConfig
from densevit.evaluate.probes.features import extract
from densevit.models.vit import DenseViT
from densevit.utils.errors import RunError

CPU = torch.device("cpu")
COUNT = 11


class Noise(Dataset):
    """Images of noise; each encodes its index."""

    def __init__(self):
        self.images = torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return self.images[index], index % 3, index


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DenseViT(RunConfig(**TINY, drop_path=0.5), classes=3, pretrained=False)


def loader(order=None):
    return DataLoader(Noise(), batch_size=4, sampler=range(COUNT) if order is None else order)


def expected(model, tokens):
    with torch.no_grad():
        found = model.eval()(Noise().images)
    wanted = {"cls": found.image, "patch": found.patches.mean(dim=1), "patches": found.patches}
    wanted["both"] = torch.stack([wanted["cls"], wanted["patch"]], dim=1)
    return wanted[tokens]


@pytest.mark.parametrize(
    ("tokens", "shape"),
    [("cls", (32,)), ("patch", (32,)), ("both", (2, 32)), ("patches", (16, 32))],
)
def test_features_are_the_networks_tokens_in_float16(model, tokens, shape):
    found = extract(model, loader(), CPU, tokens=tokens)
    assert found.shape == (COUNT, *shape)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected(model, tokens), atol=3e-3, rtol=2e-3)


def test_rows_are_in_the_order_of_the_pictures_whatever_the_loader_does(model):
    wanted = extract(model, loader(), CPU, tokens="patches")
    for seed in range(5):
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed)).tolist()
        found = extract(model, loader(order), CPU, tokens="patches")
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-3)
    chosen = extract(model, loader([9, 2, 5, 7, 0]), CPU, tokens="patches")
    torch.testing.assert_close(chosen, wanted[[0, 2, 5, 7, 9]], atol=2e-3, rtol=2e-3)
    shuffled = extract(
        model, DataLoader(Noise(), 4, shuffle=True, drop_last=True), CPU, tokens="cls"
    )
    assert len(shuffled) == 8


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_and_dropping_is_off(model, training):
    model.train(training)
    one, two = (extract(model, loader(), CPU, tokens="cls") for _ in range(2))
    assert torch.equal(one, two)
    assert model.training == training
    assert model.backbone.blocks[1].training == training


def test_the_boundary_comes_before_each_batch_and_an_error_restores_the_mode(model):
    model.train()
    calls = []

    def boundary():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(model, loader(), CPU, tokens="cls", boundary=boundary)
    assert len(calls) == 3
    assert model.training


def test_gradients_can_be_taken_through_what_is_extracted(model):
    found = extract(model, loader(), CPU, tokens="cls")
    weight = torch.ones(32, 1, dtype=torch.float16, requires_grad=True)
    (found @ weight).sum().backward()
    torch.testing.assert_close(weight.grad[:, 0], found.sum(dim=0), atol=0.02, rtol=0.02)


def test_what_cannot_be_kept_is_refused(model):
    with pytest.raises(ValueError, match="occurs twice"):
        extract(model, loader([1, 2, 3, 4, 5, 1]), CPU, tokens="cls")
    with pytest.raises(ValueError, match="cls, patch, both or patches"):
        extract(model, loader(), CPU, tokens="all")
    with pytest.raises(ValueError, match="no batch"):
        extract(model, loader([]), CPU, tokens="cls")
    with torch.no_grad():
        model.backbone.norm.weight[0] = 1e6
    with pytest.raises(RunError, match="image 0 are not finite"):
        extract(model, loader(), CPU, tokens="cls")
    with torch.no_grad():
        model.backbone.norm.weight[0] = 1
