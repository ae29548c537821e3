"""Ranks from the environment, and environments without them."""

import pytest

from densevit.utils.distributed import RENDEZVOUS, World, without_rendezvous, world
from densevit.utils.errors import UserError

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    for name in (*RENDEZVOUS, "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)

    def add(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return add


def test_the_ranks_are_those_of_torchrun(environment):
    assert world() == World()
    environment(WORLD_SIZE="4", RANK="3", LOCAL_RANK="1", **MEETING)
    assert world() == World(3, 4, 1)


@pytest.mark.parametrize(
    "left_over",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "2", **MEETING},
        {"WORLD_SIZE": "two", "RANK": "0", **MEETING},
        {"WORLD_SIZE": "0", "RANK": "0"},
    ],
    ids=str,
)
def test_a_part_of_a_rendezvous_is_one_line_and_no_waiting(environment, left_over):
    environment(**left_over)
    with pytest.raises(UserError, match="start the processes of a run with torchrun, or unset"):
        world()
    environment_of_a_run = without_rendezvous(
        {**left_over, "PATH": "/bin", "TORCHELASTIC_RUN_ID": "1"}
    )
    assert environment_of_a_run == {"PATH": "/bin"}
