"""The health of features, compared with numpy, closed forms and features of known health."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densevit.contrast.feature_stats import (
    alignment,
    collapsed,
    effective_rank,
    feature_std,
    uniformity,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [60, 24, 9])
def test_effective_rank_is_that_of_the_paper(rows):
    features = normal(rows, 24) @ normal(24, 24, seed=1) + 3 * normal(1, 24, seed=2)
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    share = values / values.sum() + 1e-7
    wanted = math.exp(-(share * np.log(share)).sum())
    assert effective_rank(features) == pytest.approx(wanted, rel=1e-6)
    assert 1 <= effective_rank(features) <= min(rows, 24)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_equal_directions_are_counted(rank):
    basis = torch.linalg.qr(normal(16, 16))[0][:rank]
    features = basis.repeat(10, 1)
    assert effective_rank(features) == pytest.approx(rank, rel=1e-4)
    assert effective_rank(7 * features) == pytest.approx(rank, rel=1e-4)  # at any scale


def test_a_component_that_all_share_is_not_taken_out():
    spread = normal(200, 32)
    assert effective_rank(spread) > 25
    assert effective_rank(spread + 100) < 2


def test_features_without_any_length_have_a_rank_all_the_same():
    assert math.isfinite(effective_rank(torch.zeros(10, 4)))


def test_collapse_is_a_twentieth_of_the_directions_beside_the_first():
    basis = torch.linalg.qr(normal(101, 101))[0]
    assert not collapsed(basis[:7].repeat(20, 1))  # 6 of 100 besides the first
    assert collapsed(basis[:5].repeat(30, 1))  # 4 of 100
    assert collapsed(torch.ones(64, 128) / 128**0.5)
    assert collapsed(torch.ones(64, 8))  # a rank of 1 is a collapse in few dimensions too
    assert not collapsed(F.normalize(normal(64, 128), dim=1))


def test_feature_std_is_one_on_the_sphere_and_zero_at_a_point():
    assert feature_std(F.normalize(normal(20000, 64), dim=1)) == pytest.approx(1, abs=0.01)
    assert feature_std(torch.full((50, 64), 0.125)) == 0
    features = F.normalize(normal(50, 8) + 1, dim=1)
    wanted = features.double().numpy().std(axis=0).mean() * math.sqrt(8)
    assert feature_std(features) == pytest.approx(wanted, rel=1e-5)


def test_alignment_is_the_mean_squared_distance():
    one, two = F.normalize(normal(40, 8), dim=1), F.normalize(normal(40, 8, seed=1), dim=1)
    wanted = np.mean([((a - b) ** 2).sum() for a, b in zip(one.numpy(), two.numpy(), strict=True)])
    assert alignment(one, two) == pytest.approx(wanted, rel=1e-5)
    assert alignment(one, one) == 0
    assert alignment(one, -one) == pytest.approx(4, rel=1e-5)


def test_uniformity_is_the_mean_over_all_pairs():
    features = F.normalize(normal(30, 8), dim=1).double().numpy()
    pairs = [
        math.exp(-2 * ((features[i] - features[j]) ** 2).sum()) for i in range(30) for j in range(i)
    ]
    assert uniformity(torch.tensor(features)) == pytest.approx(math.log(np.mean(pairs)), rel=1e-5)
    assert uniformity(torch.ones(30, 4) / 2) == 0
    # E exp(−2(2 − 2s)) = e⁻⁴ E exp(4s), and E exp(4s) is exp(8/D) to second order on the sphere.
    even = uniformity(F.normalize(normal(20000, 128), dim=1))
    assert even == pytest.approx(-4 + 8 / 128, abs=0.01)
