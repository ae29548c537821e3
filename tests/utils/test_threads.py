"""A process computes with as many threads as it wants, and never more than it was given."""

import pytest

from densevit.utils import threads


@pytest.mark.parametrize(
    ("usable", "limit", "wanted", "used"),
    [(8, None, 1, 1), (8, None, 12, 8), (8, "2", 4, 2), (2, "16", 4, 2), (8, "none", 4, 4), (8, "0", 4, 1)],
)  # fmt: skip
def test_never_more_threads_than_were_given(monkeypatch, usable, limit, wanted, used):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if limit is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert threads.threads(wanted) == used


def test_a_share_is_no_more_than_the_user_allows():
    environment = {"OMP_NUM_THREADS": "2"}
    threads.limit_processors(environment, 4)
    assert environment == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    threads.limit_processors(environment, 0)  # more jobs than processors
    assert environment["OMP_NUM_THREADS"] == "1"
