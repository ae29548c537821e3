"""The queue compared with a plain list."""

import copy
import io

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from densevit.contrast.queue import FeatureQueue


def seeded(size, dim, seed=0):
    return FeatureQueue(size, dim, generator=torch.Generator().manual_seed(seed))


def oldest_first(queue):
    """Return the content as a list of (feature, image id, call that wrote it), oldest first."""
    columns = queue.features, queue.image_ids, queue.written
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    position = queue.position.item()
    return rows[position:] + rows[:position]


def batches_of(lengths, dim):
    """Yield batches of keys that all differ; three consecutive keys come from one image."""
    count = 0
    for length in lengths:
        numbers = torch.arange(count, count + length)
        yield numbers[:, None] + torch.arange(dim) / 8, numbers // 3
        count += length


@settings(derandomize=True, deadline=None, max_examples=200)
@given(size=st.integers(1, 23), lengths=st.lists(st.integers(0, 60), max_size=30))
@example(size=4, lengths=[0, 0, 9, 0, 4, 1, 0, 17])
def test_fifo_diversity_and_age_equal_a_plain_list(size, lengths):
    queue = seeded(size, 2)
    content = oldest_first(queue)
    pushed = 0
    for call, (keys, ids) in enumerate(batches_of(lengths, 2), start=1):
        queue.enqueue(keys, ids)
        new = [(key, image, call) for key, image in zip(keys.tolist(), ids.tolist(), strict=True)]
        content = (content + new)[-size:]
        pushed += len(ids)
        assert oldest_first(queue) == content
        assert queue.position.item() == pushed % size
        assert queue.calls.item() == call
        filled = [(image, written) for _, image, written in content if image >= 0]
        assert len(filled) == min(pushed, size)
        assert queue.diversity() == len({image for image, _ in filled}) / size
        # In the next step, the entries of this call are one step old.
        ages = [call + 1 - written for _, written in filled]
        assert queue.age() == pytest.approx(sum(ages) / len(ages) if ages else 0, rel=1e-12)


def test_age_is_how_many_calls_ago_a_slot_was_written():
    queue = seeded(6, 2)
    assert queue.age() == 0
    queue.enqueue(torch.zeros(0, 2), torch.arange(0))
    assert queue.age() == 0  # a call without keys fills no slot
    queue.enqueue(torch.zeros(2, 2), torch.arange(2))
    assert queue.age() == 1
    queue.enqueue(torch.zeros(2, 2), torch.arange(2))
    assert queue.age() == 1.5  # 2 2 1 1, and two empty slots
    for _ in range(20):
        queue.enqueue(torch.zeros(2, 2), torch.arange(2))
    assert queue.age() == 2  # 3 3 2 2 1 1: in the long run (size/M + 1)/2
    queue.enqueue(torch.zeros(15, 2), torch.arange(15))
    assert queue.age() == 1


def test_a_new_queue_holds_random_unit_vectors_without_an_image():
    queue = seeded(500, 16)
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(500))
    assert queue.features.mean(dim=0).norm() < 0.2  # 1/√500 = 0.045 for random directions
    assert (queue.image_ids == -1).all()
    assert queue.position.item() == queue.calls.item() == 0
    assert (queue.written == 0).all()
    assert queue.features.dtype == torch.float32
    assert torch.equal(queue.features, seeded(500, 16).features)
    assert not torch.equal(queue.features, seeded(500, 16, seed=1).features)
    assert list(queue.parameters()) == []


def test_keys_are_stored_as_values_without_their_graph():
    queue = seeded(8, 4)
    keys = torch.ones(3, 4, requires_grad=True)
    queue.enqueue(keys * 2, torch.arange(3))
    assert not queue.features.requires_grad
    with torch.no_grad():
        keys.zero_()
    assert (queue.features[:3] == 2).all()
    queue.enqueue(torch.full((1, 4), 0.5, dtype=torch.bfloat16), torch.tensor([9]))
    assert queue.features.dtype == torch.float32
    assert (queue.features[3] == 0.5).all()


def by_state_dict(queue):
    other = seeded(*queue.features.shape, seed=7)
    other.load_state_dict(queue.state_dict())
    return other


def inside_a_model_and_a_file(queue):
    file = io.BytesIO()
    torch.save(torch.nn.ModuleDict({"queue": queue}).state_dict(), file)
    file.seek(0)
    model = torch.nn.ModuleDict({"queue": seeded(*queue.features.shape, seed=7)})
    model.load_state_dict(torch.load(file, weights_only=True))
    return model["queue"]


def after_other_keys(queue):
    other = by_state_dict(queue)
    other.enqueue(torch.zeros(3, queue.features.shape[1]), torch.arange(3))
    other.load_state_dict(queue.state_dict())
    return other


@pytest.mark.parametrize(
    "restore", [by_state_dict, inside_a_model_and_a_file, after_other_keys, copy.deepcopy]
)
@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_restored_queue_continues_exactly(restore, stop):
    batches = list(batches_of([3, 9, 1, 4, 25, 0, 2, 10], 4))
    queue = seeded(10, 4)
    for keys, ids in batches[:stop]:
        queue.enqueue(keys, ids)
    restored = restore(queue)
    assert set(queue.state_dict()) == {"features", "image_ids", "position", "written", "calls"}
    for keys, ids in batches[stop:]:
        queue.enqueue(keys, ids)
        restored.enqueue(keys, ids)
        assert oldest_first(restored) == oldest_first(queue)
        assert restored.age() == queue.age()
        for name, value in queue.state_dict().items():
            assert torch.equal(restored.state_dict()[name], value)


def test_diversity_counts_images_over_all_slots():
    queue = seeded(8, 2)
    assert queue.diversity() == 0.0
    queue.enqueue(torch.zeros(4, 2), torch.tensor([5, 5, 5, 7]))
    assert queue.diversity() == 2 / 8
    queue.enqueue(torch.zeros(6, 2), torch.tensor([1, 2, 3, 4, 0, 0]))  # 5 and 7 have one slot each
    assert queue.diversity() == 7 / 8
    queue.enqueue(torch.zeros(8, 2), torch.arange(8))
    assert queue.diversity() == 1.0


@pytest.mark.parametrize(("size", "dim", "name"), [(0, 4, "size"), (-3, 4, "size"), (4, 0, "dim")])
def test_impossible_sizes_are_refused(size, dim, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got"):
        FeatureQueue(size, dim)


def test_wrong_shapes_are_refused_and_change_nothing():
    queue = seeded(8, 4)
    before, calls = oldest_first(queue), queue.calls.item()
    with pytest.raises(ValueError, match=r"keys must be \(M, 4\), got \(3, 5\)"):
        queue.enqueue(torch.zeros(3, 5), torch.arange(3))
    with pytest.raises(ValueError, match=r"image_ids must be \(3,\), got \(2,\)"):
        queue.enqueue(torch.zeros(3, 4), torch.arange(2))
    assert oldest_first(queue) == before
    assert queue.calls.item() == calls
