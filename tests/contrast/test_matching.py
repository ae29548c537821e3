"""The matching against loops in float64."""

import math

import pytest
import torch

from densevit.contrast.matching import match, random_match


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(f1, f2):
    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    return [
        [max(range(len(two)), key=lambda j, p=patch: cosine(p, two[j])) for patch in one]
        for one, two in zip(f1.tolist(), f2.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("b", "q", "n", "e"), [(1, 1, 1, 1), (3, 16, 16, 8), (2, 7, 30, 5)])
def test_match_equals_loops_in_float64_for_patches_of_any_norm(b, q, n, e):
    scale = 10.0 ** normal(b, n, 1, seed=2)
    f1, f2 = (normal(b, n, e, seed=0) * scale.flip(1))[:, :q], normal(b, n, e, seed=1) * scale
    got = match(f1, f2)
    assert got.shape == (b, q)
    assert got.dtype == torch.int64
    assert got.tolist() == brute_force(f1, f2)


def test_a_long_patch_attracts_no_matches():
    f1 = normal(2, 40, 16, seed=0)
    f2 = f1.clone()
    f2[:, 3] *= 1000
    assert match(f1, f2).tolist() == [list(range(40))] * 2


def test_a_permutation_is_found_and_several_patches_may_share_a_match():
    f1 = normal(1, 20, 16, seed=0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(match(f1[:, order], f1)[0], order)
    assert match(f1[:, :1].expand(1, 20, 16), f1).tolist() == [[0] * 20]


def test_match_has_no_gradient_and_ignores_autocast():
    f1, f2 = normal(2, 60, 8, seed=0).requires_grad_(), normal(2, 60, 8, seed=1)
    wanted = match(f1, f2)
    assert not wanted.requires_grad
    # Second best matches so close that bfloat16 products (2⁻⁹) could not tell them apart.
    f2[:, 1:] = f2[:, :1] + 1e-4 * f2[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = match(f1, f2)
    assert torch.equal(inside, match(f1, f2))


def test_random_match_is_uniform_and_follows_the_generator():
    draw = random_match(500, 10, torch.Generator().manual_seed(0), "cpu")
    assert draw.shape == (500, 10)
    assert draw.dtype == torch.int64
    counts = draw.flatten().bincount(minlength=10)
    assert len(counts) == 10
    # 5,000 draws, 500 expected each; chi-square with 9 degrees of freedom exceeds 27.9 in 0.1 %.
    assert ((counts - 500) ** 2 / 500).sum() < 27.9
    # Independent, so an image repeats indices (ten different ones have probability 0.0004).
    assert sum(len(row.unique()) == 10 for row in draw) < 5
    assert torch.equal(draw, random_match(500, 10, torch.Generator().manual_seed(0), "cpu"))
    assert not torch.equal(draw, random_match(500, 10, torch.Generator().manual_seed(1), "cpu"))
    assert random_match(2, 3, None, "cpu").shape == (2, 3)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"f1 must be \(B, Q, E\), got \(3, 4\)"):
        match(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"f2 must be \(2, N, 4\) for f1 \(2, 3, 4\), got"):
        match(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="patches must be at least 1, got 0"):
        random_match(2, 0, None, "cpu")
