"""Which patches are selected, compared with brute force in float64 and with chance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from densevit.contrast.sampling import sample


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def largest_gap(keys, chosen):
    """Return the largest cosine distance of a patch to its nearest selected one, per image, in
    float64."""
    gaps = []
    for patches, indices in zip(F.normalize(keys.double(), dim=2), chosen, strict=True):
        gaps.append((1 - patches @ patches[indices].T).min(dim=1).values.max())
    return torch.stack(gaps)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    b=st.integers(1, 4),
    n_and_patches=st.integers(1, 30).flatmap(lambda p: st.tuples(st.integers(1, p), st.just(p))),
    d=st.integers(1, 6),
    strategy=st.sampled_from(["random", "diverse", "hardest"]),
    kind=st.sampled_from(["normal", "equal", "zero"]),
    seed=st.integers(0, 1000),
)
def test_indices_are_distinct_and_in_range(b, n_and_patches, d, strategy, kind, seed):
    n, patches = n_and_patches
    keys = normal(b, patches, d, seed=seed)
    if kind == "equal":
        keys = keys[:, :1].expand(b, patches, d)
    elif kind == "zero":
        keys = torch.zeros_like(keys)
    queue = F.normalize(normal(11, d, seed=seed + 1), dim=1)
    chosen = sample(keys, n, strategy, queue, generator(seed))
    assert chosen.shape == (b, n)
    assert chosen.dtype == torch.int64
    for row in chosen.tolist():
        assert len(set(row)) == n
        assert set(row) <= set(range(patches))
    assert torch.equal(chosen, sample(keys, n, strategy, queue, generator(seed)))


def test_random_takes_every_patch_equally_often_and_images_independently():
    chosen = sample(torch.zeros(4000, 8, 2), 3, "random", generator=generator(0))
    counts = chosen.flatten().bincount(minlength=8)
    # 12,000 draws, 1,500 expected each. Without replacement the spread is smaller than that of the
    # chi-square with 7 degrees of freedom, which exceeds 24.3 in 0.1 %.
    assert ((counts - 1500) ** 2 / 1500).sum() < 24.3
    # 8·7·6 = 336 ordered triples; 4,000 images miss one of them with probability 0.002.
    assert len({tuple(row) for row in chosen.tolist()}) >= 334


def test_diverse_covers_the_image_better_than_random():
    gaps = {"random": [], "diverse": []}
    for seed in range(20):
        keys = normal(4, 49, 8, seed=seed) + 2 * normal(4, 1, 8, seed=seed + 100)
        for strategy, values in gaps.items():
            chosen = sample(keys, 8, strategy, generator=generator(seed))
            values.append(largest_gap(keys, chosen).mean())
    random, diverse = (torch.stack(gaps[s]) for s in ("random", "diverse"))
    assert diverse.mean() < 0.8 * random.mean()
    assert (diverse < random).float().mean() > 0.9


def test_diverse_takes_one_patch_of_every_cluster():
    centres = F.normalize(normal(1, 5, 32, seed=0), dim=2)
    sizes = [40, 5, 2, 1, 1]
    owner = torch.tensor([c for c, size in enumerate(sizes) for _ in range(size)])
    keys = (centres[:, owner] + 0.01 * normal(1, 49, 32, seed=1)).expand(6, 49, 32)
    keys = keys * torch.rand(6, 49, 1, generator=generator(2)).add(0.1)  # norms do not matter
    for row in sample(keys, 5, "diverse", generator=generator(3)):
        assert sorted(owner[row].tolist()) == [0, 1, 2, 3, 4]


def test_diverse_equals_farthest_point_loops_in_float64():
    keys = normal(5, 60, 6, seed=0)  # so many that bfloat16 products would select others
    chosen = sample(keys, 20, "diverse", generator=generator(1)).tolist()
    for patches, row in zip(F.normalize(keys.double(), dim=2), chosen, strict=True):
        distance = (1 - patches @ patches.T).tolist()
        for step in range(1, 20):
            others = [i for i in range(60) if i not in row[:step]]
            wanted = max(others, key=lambda i: min(distance[i][j] for j in row[:step]))
            assert row[step] == wanted


def test_diverse_starts_anywhere():
    first = sample(normal(1, 6, 4, seed=0).expand(600, 6, 4), 1, "diverse", generator=generator(0))
    counts = first.flatten().bincount(minlength=6)
    # 100 expected each; chi-square with 5 degrees of freedom exceeds 20.5 in 0.1 %.
    assert ((counts - 100) ** 2 / 100).sum() < 20.5


def test_hardest_has_the_lowest_mean_cosine_to_the_queue():
    keys = normal(4, 30, 8, seed=0) * 10.0 ** normal(4, 30, 1, seed=1)
    queue = F.normalize(normal(300, 8, seed=2) + 0.5, dim=1)
    chosen = sample(keys, 7, "hardest", queue)
    cosines = F.cosine_similarity(keys.double()[:, :, None], queue.double(), dim=3)
    mean = cosines.mean(dim=2).tolist()  # (4, 30, 300) -> (4, 30)
    for row, values in zip(chosen.tolist(), mean, strict=True):
        assert set(row) == set(sorted(range(30), key=values.__getitem__)[:7])


def test_of_equally_hard_patches_the_first_are_taken():
    chosen = sample(torch.ones(2, 300, 4), 9, "hardest", torch.ones(5, 4))
    assert chosen.tolist() == [list(range(9))] * 2


@pytest.mark.parametrize("strategy", ["random", "diverse", "hardest"])
def test_no_gradient_and_float32_similarities_under_autocast_and_of_half_features(strategy):
    # So many patches that bfloat16 products would change their order.
    keys = normal(2, 400, 16, seed=0).requires_grad_()
    queue = F.normalize(normal(50, 16, seed=1), dim=1)
    wanted = sample(keys, 200, strategy, queue, generator(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = sample(keys, 200, strategy, queue, generator(0))
    assert torch.equal(got, wanted)
    assert not got.requires_grad
    half = keys.bfloat16(), queue.bfloat16()
    chosen, wanted = (
        sample(features, 200, strategy, negatives, generator(0))
        for features, negatives in (half, (half[0].float(), half[1].float()))
    )
    assert torch.equal(chosen, wanted)


@pytest.mark.parametrize(
    ("n", "strategy", "queue", "message"),
    [
        (0, "random", None, "n must be between 1 and the 6 patches of an image, got 0"),
        (7, "random", None, "n must be between 1 and the 6 patches of an image, got 7"),
        (2, "best", None, "strategy must be one of random, diverse, hardest, got 'best'"),
        (2, "hardest", None, "queue must be given for strategy 'hardest'"),
        (2, "hardest", torch.zeros(5, 3), r"queue must be \(K, 4\) .* got \(5, 3\)"),
        (2, "hardest", torch.zeros(0, 4), r"queue must be \(K, 4\) .* got \(0, 4\)"),
    ],
)
def test_wrong_arguments_are_named(n, strategy, queue, message):
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(2, 6, 4), n, strategy, queue)


def test_keys_without_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"keys must be \(B, N, D\), got \(6, 4\)"):
        sample(torch.zeros(6, 4), 2, "random")
