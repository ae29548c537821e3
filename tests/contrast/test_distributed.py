"""Two real processes that fill their queues together, compared with one that gets the whole batch."""

from datetime import timedelta

import forked
import pytest
import torch
from torch import distributed, multiprocessing

from densevit.contrast.queue import FeatureQueue

SIZE, DIM, RANKS = 11, 3, 2
# Keys per rank in each step: 2·4 and 2·3 do not divide 11; 2·7 and 2·13 are more than 11.
LENGTHS = [4, 3, 7, 0, 1, 13, 4, 5]


def new_queue():
    return FeatureQueue(SIZE, DIM, generator=torch.Generator().manual_seed(5))


def global_batch(step):
    """Return keys and image ids of both ranks, in the order of the ranks, all different."""
    count = RANKS * LENGTHS[step]
    numbers = torch.arange(count) + 100 * step
    return numbers[:, None] + torch.arange(DIM) / 8, numbers


def steps_of_a_rank(rank, folder, break_rank):
    """Enqueue the rank's halves of the global batches, and store the state after each."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
        timeout=timedelta(seconds=600),
    )  # fmt: skip
    queue, states = new_queue(), []
    for step, length in enumerate(LENGTHS):
        if rank == break_rank and step == 2:
            raise RuntimeError("this rank breaks")
        half = slice(rank * length, (rank + 1) * length)
        keys, ids = (part[half] for part in global_batch(step))
        # As a loss returns them: with a gradient, and in odd steps not contiguous.
        keys = keys.clone().requires_grad_() * 1
        if step % 2:
            keys = keys.T.contiguous().T
        queue.enqueue(keys, ids)
        states.append({name: value.clone() for name, value in queue.state_dict().items()})
    torch.save(states, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def run_ranks(folder, break_rank=None):
    """Return the states that each rank stored; an error in a rank is raised here."""
    multiprocessing.start_processes(
        steps_of_a_rank, (folder, break_rank), nprocs=RANKS, start_method=forked.METHOD
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_end_with_the_queue_of_one_that_gets_the_global_batch(tmp_path):
    first, second = run_ranks(tmp_path)
    alone = new_queue()
    for step in range(len(LENGTHS)):
        alone.enqueue(*global_batch(step))
        assert equal(first[step], alone.state_dict())
        assert equal(second[step], first[step])
    assert first[-1]["calls"] == len(LENGTHS)
    assert set(first[-1]["image_ids"].tolist()) > {700, 709}  # the last keys of both ranks


def test_an_error_in_one_process_is_seen(tmp_path):
    # Reported by whichever process fails first: the broken one, or the one that waits for it.
    told = "this rank breaks|Connection closed by peer"
    with pytest.raises(multiprocessing.ProcessRaisedException, match=told):
        run_ranks(tmp_path, break_rank=1)
